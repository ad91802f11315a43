//! Puts the programs in place under the names people type, with man pages and shell completions.

use crate::steps::{Step, build_programs, output, top};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// `cargo xtask install` and `uninstall`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Where programs and manuals belong (programs go to PREFIX/sbin)
    #[arg(long, default_value = "/usr/local", env = "PREFIX")]
    prefix: PathBuf,
    /// Where mount(8), umount(8) and fsck(8) look for their helpers
    #[arg(long, default_value = "/sbin", env = "HELPERDIR")]
    helper_dir: PathBuf,
    /// Put everything below this folder instead of / (for packages)
    #[arg(long, default_value = "/", env = "DESTDIR")]
    destdir: PathBuf,
    /// Names of gfs2-utils' programs are taken over only when asked: mkfs.gfs2 and fsck.gfs2 go to PREFIX/sbin anyway,
    /// this links them into the helper folder too, so that mkfs(8) -t gfs2 and fsck(8) -t gfs2 find them
    #[arg(long)]
    replace_gfs2_utils: bool,
}

/// Program as cargo builds it, and its name in PREFIX/sbin.
const PROGRAMS: &[(&str, &str)] = &[
    ("mkfs-gfs2", "mkfs.gfs2"),
    ("fsck-gfs2", "fsck.gfs2"),
    ("mount-fuse-gfs2", "mount.fuse-gfs2"),
    ("gfs2ctl", "gfs2ctl"),
];

/// Links: name, the program in PREFIX/sbin it stands for. mount(8) and umount(8) go by the type in fstab or in
/// /proc/mounts, fsck(8) by the type in fstab.
const HELPERS: &[(&str, &str)] = &[
    ("mount.fuse-gfs2", "mount.fuse-gfs2"),
    ("mount.fuse.gfs2", "mount.fuse-gfs2"),
    ("umount.fuse-gfs2", "mount.fuse-gfs2"),
    ("umount.fuse.gfs2", "mount.fuse-gfs2"),
    ("fsck.fuse-gfs2", "fsck.gfs2"),
    ("fsck.fuse.gfs2", "fsck.gfs2"),
];

/// Manual pages: where they lie in the tree, their section, and further names.
const MANUALS: &[(&str, &str, &[&str])] = &[
    ("mkfs/mkfs.gfs2.8", "man8", &[]),
    ("fsck/fsck.gfs2.8", "man8", &["fsck.fuse-gfs2.8"]),
    (
        "src/mount/mount.fuse-gfs2.8",
        "man8",
        &["mount.fuse.gfs2.8", "umount.fuse.gfs2.8"],
    ),
    ("src/ctl/gfs2ctl.8", "man8", &[]),
];

/// Completion files of one shell.
struct Shell {
    name: &'static str,
    /// Below PREFIX.
    folder: &'static str,
    before: &'static str,
    after: &'static str,
}

impl Shell {
    fn file(&self, program: &str) -> String {
        format!("{}/{}{program}{}", self.folder, self.before, self.after)
    }
}

const SHELLS: &[Shell] = &[
    Shell {
        name: "bash",
        folder: "share/bash-completion/completions",
        before: "",
        after: "",
    },
    Shell {
        name: "zsh",
        folder: "share/zsh/site-functions",
        before: "_",
        after: "",
    },
    Shell {
        name: "fish",
        folder: "share/fish/vendor_completions.d",
        before: "",
        after: ".fish",
    },
];

/// Where things go.
struct Places {
    sbin: PathBuf,
    prefix: PathBuf,
    helpers: PathBuf,
    /// Programs as links name them: without DESTDIR.
    programs: PathBuf,
}

impl Places {
    fn new(args: &Args) -> Self {
        let below = |path: &Path| args.destdir.join(path.strip_prefix("/").unwrap_or(path));
        let programs = args.prefix.join("sbin");
        Self {
            sbin: below(&programs),
            prefix: below(&args.prefix),
            helpers: below(&args.helper_dir),
            programs,
        }
    }

    fn links(&self, args: &Args) -> Vec<(PathBuf, PathBuf)> {
        let extra: &[(&str, &str)] = if args.replace_gfs2_utils {
            &[("mkfs.gfs2", "mkfs.gfs2"), ("fsck.gfs2", "fsck.gfs2")]
        } else {
            &[]
        };
        let all = HELPERS.iter().chain(extra);
        all.map(|(name, program)| (self.helpers.join(name), self.programs.join(program)))
            .filter(|(link, program)| link != program)
            .collect()
    }
}

pub(crate) fn install(args: &Args) -> Step {
    let built = build_programs()?;
    let places = Places::new(args);
    for (from, name) in PROGRAMS {
        place(
            &fs::read(built.join(from)).map_err(|e| format!("{from}: {e}"))?,
            &places.sbin.join(name),
            0o755,
        )?;
    }
    for (link, program) in places.links(args) {
        make_link(&program, &link)?;
    }
    for (page, section, aliases) in MANUALS {
        let text = fs::read(top().join(page)).map_err(|e| format!("{page}: {e}"))?;
        let name = Path::new(page).file_name().unwrap_or_default();
        let folder = places.prefix.join("share/man").join(section);
        place(&text, &folder.join(name), 0o644)?;
        for alias in *aliases {
            make_link(Path::new(name), &folder.join(alias))?;
        }
    }
    for (from, name) in PROGRAMS {
        for shell in SHELLS {
            let text = output(Command::new(built.join(from)).env("FUSE_GFS2_COMPLETIONS", shell.name))?;
            place(text.as_bytes(), &places.prefix.join(shell.file(name)), 0o644)?;
        }
    }
    println!(
        "installed below {} (helpers in {})",
        places.prefix.display(),
        places.helpers.display()
    );
    Ok(())
}

pub(crate) fn uninstall(args: &Args) -> Step {
    let places = Places::new(args);
    let mut files: Vec<PathBuf> = PROGRAMS.iter().map(|(_, name)| places.sbin.join(name)).collect();
    files.extend(places.links(args).into_iter().map(|(link, _)| link));
    for (page, section, aliases) in MANUALS {
        let folder = places.prefix.join("share/man").join(section);
        files.push(folder.join(Path::new(page).file_name().unwrap_or_default()));
        files.extend(aliases.iter().map(|alias| folder.join(alias)));
    }
    for (_, name) in PROGRAMS {
        files.extend(SHELLS.iter().map(|shell| places.prefix.join(shell.file(name))));
    }
    for file in files {
        match fs::remove_file(&file) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{}: {error}", file.display())),
        }
    }
    Ok(())
}

fn place(bytes: &[u8], to: &Path, mode: u32) -> Step {
    let say = |error: std::io::Error| format!("{}: {error}", to.display());
    make_folder(to)?;
    // A program that runs cannot be overwritten, but it can be replaced.
    let new = to.with_extension("new");
    fs::write(&new, bytes).map_err(say)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).map_err(say)?;
    fs::rename(&new, to).map_err(say)
}

fn make_link(target: &Path, link: &Path) -> Step {
    make_folder(link)?;
    match fs::remove_file(link) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("{}: {error}", link.display()));
        }
        _ => {}
    }
    symlink(target, link).map_err(|error| format!("{}: {error}", link.display()))
}

fn make_folder(file: &Path) -> Step {
    let folder = file.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}
