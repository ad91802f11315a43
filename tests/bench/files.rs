//! Many small files, through whatever is mounted: `files OPERATION DIRECTORY COUNT [FOLDERS]` prints operations a second.
//!
//! The operations are those of `tests/bench/compare`; a file's number decides its folder and its name. Without
//! arguments (as `cargo bench` runs it) nothing is done.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Instant;

/// Step through the files that is no order of any filesystem: prime, so that every file has its turn.
const STEP: u64 = 7919;
/// Bytes of a file.
const BYTES: usize = 100;

struct Tree {
    root: PathBuf,
    folders: u64,
}

impl Tree {
    fn path(&self, n: u64, suffix: &str) -> PathBuf {
        let folder = n % self.folders;
        self.root.join(format!("d{folder:03}/file-{n:07}{suffix}"))
    }

    fn make(&self, path: PathBuf) -> io::Result<File> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(&[b'x'; BYTES])?;
        Ok(file)
    }

    fn one(&self, operation: &str, n: u64, count: u64) -> io::Result<()> {
        let mixed = n.wrapping_mul(STEP) % count;
        match operation {
            "create" => self.make(self.path(n, "")).map(drop),
            "create-fsync" => self.make(self.path(n, ".s"))?.sync_all(),
            "stat" => fs::metadata(self.path(mixed, "")).map(drop),
            "open" => File::open(self.path(mixed, "")).map(drop),
            "read" => {
                let mut bytes = Vec::with_capacity(BYTES);
                File::open(self.path(mixed, ""))?
                    .read_to_end(&mut bytes)
                    .map(drop)
            }
            "rename" => fs::rename(self.path(n, ""), self.path(n, ".r")),
            "rename-back" => fs::rename(self.path(n, ".r"), self.path(n, "")),
            "unlink" => fs::remove_file(self.path(n, "")),
            other => Err(io::Error::other(format!("no operation {other}"))),
        }
    }
}

pub(crate) fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    let [operation, root, count, rest @ ..] = args.as_slice() else {
        println!("files OPERATION DIRECTORY COUNT [FOLDERS]");
        return Ok(());
    };
    let number = |text: &String| text.parse::<u64>().map_err(io::Error::other);
    let count = number(count)?;
    let folders = rest.first().map_or(Ok(1), number)?.max(1);
    let tree = Tree {
        root: root.into(),
        folders,
    };
    if operation == "create" {
        for folder in 0..folders {
            fs::create_dir_all(tree.root.join(format!("d{folder:03}")))?;
        }
    }
    let clock = Instant::now();
    for n in 0..count {
        tree.one(operation, n, count)?;
    }
    println!("{:.1}", count as f64 / clock.elapsed().as_secs_f64());
    Ok(())
}
