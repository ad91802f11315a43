//! A kernel's page cache in miniature, over the verbs: pages that are locked while they are read and written back,
//! that stores make dirty without telling anybody, and that a demote has written back and dropped.

use super::ROOT;
use fuse_gfs2::glock::KernelCache;
use fuse_gfs2::ops::{Fs, Handle, OpenFlags};
use gfs2_format::BlockAddr;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

/// Bytes of a page.
pub const PAGE: usize = 4096;

#[derive(Clone)]
struct Page {
    bytes: Vec<u8>,
    dirty: bool,
}

/// A mapped file: its pages, and the handles they are read and written back through.
pub struct Mapped {
    fs: Arc<Fs>,
    addr: BlockAddr,
    /// Each page's lock is what the kernel's page lock is.
    pages: Vec<Mutex<Option<Page>>>,
    reader: Handle,
    writer: Mutex<Option<Handle>>,
}

impl Mapped {
    /// Maps so many pages of a file for reading.
    pub fn new(fs: &Arc<Fs>, addr: BlockAddr, pages: usize) -> Arc<Self> {
        Arc::new(Self {
            fs: Arc::clone(fs),
            addr,
            pages: std::iter::repeat_with(|| Mutex::new(None)).take(pages).collect(),
            reader: fs.open(addr, OpenFlags::READ).expect("to open a file"),
            writer: Mutex::new(None),
        })
    }

    /// Opens it for writing too; the pages stay as they are, as with `FOPEN_KEEP_CACHE`.
    pub fn open_writable(&self) {
        let mut writer = self.writer.lock().expect("a whole test");
        if writer.is_none() {
            let flags = OpenFlags::READ | OpenFlags::WRITE;
            *writer = Some(self.fs.open(self.addr, flags).expect("to open a file"));
        }
    }

    /// Unmaps it for writing: what is dirty is written back first.
    pub fn close_writable(&self) {
        self.write_back();
        if let Some(handle) = self.writer.lock().expect("a whole test").take() {
            self.fs.release(handle);
        }
    }

    /// Ends it.
    pub fn close(&self) {
        self.close_writable();
        self.fs.release(self.reader);
    }

    fn handle(&self) -> Option<Handle> {
        *self.writer.lock().expect("a whole test")
    }

    /// What a fault does: the page is locked until it has been read.
    fn fault<T>(&self, n: usize, touch: impl FnOnce(&mut Page) -> T) -> T {
        let mut page = self.pages[n].lock().expect("a whole test");
        if page.is_none() {
            let handle = self.handle().unwrap_or(self.reader);
            let mut bytes = vec![0; PAGE];
            let read = self.fs.read(handle, (n * PAGE) as u64, &mut bytes);
            let got = read.expect("a page");
            bytes[got..].fill(0);
            *page = Some(Page { bytes, dirty: false });
        }
        touch(page.as_mut().expect("a page"))
    }

    /// Loads a page.
    pub fn load(&self, n: usize) -> Vec<u8> {
        self.fault(n, |page| page.bytes.clone())
    }

    /// Stores into a page. Nobody is told. The file must be open for writing.
    pub fn store(&self, n: usize, at: usize, bytes: &[u8]) {
        self.fault(n, |page| {
            page.bytes[at..at + bytes.len()].copy_from_slice(bytes);
            page.dirty = true;
        });
    }

    /// write(2): into the page if there is one, and on to the daemon while the page is locked.
    pub fn write(&self, n: usize, at: usize, bytes: &[u8]) {
        let mut page = self.pages[n].lock().expect("a whole test");
        if let Some(page) = page.as_mut() {
            page.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let handle = self.handle().expect("a file open for writing");
        let offset = (n * PAGE + at) as u64;
        let written = self.fs.write(&ROOT, handle, offset, bytes, false, false);
        assert_eq!(written.expect("to write"), bytes.len());
    }

    fn drop_page(&self, n: usize) {
        let mut page = self.pages[n].lock().expect("a whole test");
        self.clean(n, &mut page);
        *page = None;
    }

    fn clean(&self, n: usize, page: &mut Option<Page>) {
        if let Some(page) = page.as_mut().filter(|page| page.dirty) {
            let handle = self.handle().expect("a dirty page of a file open for writing");
            let offset = (n * PAGE) as u64;
            let written = self.fs.write(&ROOT, handle, offset, &page.bytes, false, false);
            assert_eq!(written.expect("to write a page back"), PAGE);
            page.dirty = false;
        }
    }

    /// Writes dirty pages back.
    pub fn write_back(&self) {
        for (n, page) in self.pages.iter().enumerate() {
            self.clean(n, &mut page.lock().expect("a whole test"));
        }
    }

    /// msync and fsync.
    pub fn sync(&self) {
        self.write_back();
        if let Some(handle) = self.handle() {
            self.fs.fsync(handle, true).expect("to sync");
        }
    }

    fn invalidate(&self) {
        (0..self.pages.len()).for_each(|n| self.drop_page(n));
    }
}

/// The page caches of a node.
#[derive(Default)]
pub struct PageCaches {
    files: Mutex<HashMap<u64, Weak<Mapped>>>,
}

impl PageCaches {
    /// From now on this file's pages are dropped when its lock goes.
    pub fn add(&self, file: &Arc<Mapped>) {
        let mut files = self.files.lock().expect("a whole test");
        files.insert(file.addr.get(), Arc::downgrade(file));
    }
}

impl KernelCache for PageCaches {
    fn flush_and_invalidate(&self, inode_number: u64, _keep_clean: bool) {
        let file = self
            .files
            .lock()
            .expect("a whole test")
            .get(&inode_number)
            .cloned();
        if let Some(file) = file.and_then(|file| file.upgrade()) {
            file.invalidate();
        }
    }

    /// The pages stay as they are; one that should not be there is found stale by its owner.
    fn invalidate_attributes(&self, _inode_number: u64) {}
}
