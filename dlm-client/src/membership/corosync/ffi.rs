//! The calls of corosync's client libraries, loaded at run time: the only unsafe code of the membership.
//!
//! Invariants: callbacks run only inside a `dispatch` of this module, on its thread, and do nothing but copy what they
//! are given into a queue of that thread; a handle is finalized once, when its owner is dropped; libraries stay loaded
//! for the life of the process.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};

/// `CS_OK`.
pub(super) const OK: c_int = 1;
/// `CS_ERR_LIBRARY`: also what we say for a handle that cannot be used.
const ERR_LIBRARY: c_int = 2;
/// `CS_ERR_TRY_AGAIN`.
pub(super) const TRY_AGAIN: c_int = 6;
/// `CS_ERR_NO_SECTIONS`: an iteration is at its end.
const NO_SECTIONS: c_int = 27;
const DISPATCH_ALL: c_int = 2;
/// `CPG_ITERATION_ALL`: every member of every group.
const ITERATION_ALL: c_int = 3;
const TRACK_CHANGES: u32 = 2;
const TYPE_AGREED: c_int = 2;
const MODEL_V1: c_int = 1;
const DELIVER_INITIAL_TOTEM_CONF: u32 = 1;
const NAME_MAX: usize = 128;
/// More members than corosync can have.
const LIST_MAX: usize = 1024;
/// Longest message corosync delivers.
const MESSAGE_MAX: usize = 1 << 24;

/// What a callback told.
#[derive(Debug)]
pub(super) enum Raw {
    Deliver {
        handle: u64,
        node: u32,
        bytes: Vec<u8>,
    },
    Confchg {
        handle: u64,
        members: Vec<Address>,
        left: Vec<Address>,
        joined: Vec<Address>,
    },
    Ring {
        handle: u64,
        ring: RingId,
    },
    Quorum {
        quorate: bool,
        ring: RingId,
        members: Vec<u32>,
    },
    Nodes {
        joined: Vec<u32>,
        left: Vec<u32>,
    },
    Shutdown,
}

thread_local! {
    static QUEUE: RefCell<Vec<Raw>> = const { RefCell::new(Vec::new()) };
}

fn push(raw: Raw) {
    QUEUE.with(|queue| {
        if let Ok(mut queue) = queue.try_borrow_mut() {
            queue.push(raw);
        }
    });
}

/// Takes what the callbacks of this thread told.
pub(super) fn take() -> Vec<Raw> {
    QUEUE.with(|queue| std::mem::take(&mut *queue.borrow_mut()))
}

/// `struct cpg_address`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub(super) node: u32,
    pub(super) pid: u32,
    pub(super) reason: u32,
}

/// `struct cpg_ring_id`, `struct quorum_ring_id`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct RingId {
    pub(super) node: u32,
    pub(super) seq: u64,
}

/// `struct cpg_name`.
#[repr(C)]
struct Name {
    length: u32,
    value: [u8; NAME_MAX],
}

impl Name {
    /// The name with the zero byte that belongs to it in the groups of lock daemons.
    fn new(name: &str) -> Option<Self> {
        let bytes = CString::new(name).ok()?.into_bytes_with_nul();
        let mut value = [0; NAME_MAX];
        value.get_mut(..bytes.len())?.copy_from_slice(&bytes);
        let length = u32::try_from(bytes.len()).ok()?;
        Some(Self { length, value })
    }
}

/// `struct cpg_iteration_description_t`: one member of one group.
#[repr(C)]
struct Description {
    group: Name,
    node: u32,
    pid: u32,
}

#[repr(C)]
struct CpgModel {
    model: c_int,
    deliver: extern "C" fn(u64, *const Name, u32, u32, *const c_void, usize),
    confchg:
        extern "C" fn(u64, *const Name, *const Address, usize, *const Address, usize, *const Address, usize),
    totem: extern "C" fn(u64, RingId, u32, *const u32),
    flags: u32,
}

#[repr(C)]
struct QuorumModel {
    model: c_int,
    notify: extern "C" fn(u64, u32, RingId, u32, *const u32),
    nodelist: extern "C" fn(u64, RingId, u32, *const u32, u32, *const u32, u32, *const u32),
}

#[repr(C)]
struct CfgCallbacks {
    shutdown: extern "C" fn(u64, c_int),
}

/// `corosync_cfg_node_address_t`: the address is a `sockaddr_in6` or something shorter.
#[repr(C)]
#[derive(Clone, Copy)]
struct NodeAddress {
    length: c_int,
    address: [u8; 28],
}

#[repr(C)]
struct IoVec {
    base: *const c_void,
    len: usize,
}

/// Copies a list of the library.
///
/// # Safety
/// `start` must be null, or point to `len` valid elements.
unsafe fn list<T: Copy>(start: *const T, len: usize) -> Vec<T> {
    if start.is_null() || len > LIST_MAX.max(MESSAGE_MAX) {
        return Vec::new();
    }
    // SAFETY: not null, and the caller vouches for the length.
    unsafe { std::slice::from_raw_parts(start, len) }.to_vec()
}

fn count(len: u32) -> usize {
    usize::try_from(len).unwrap_or(0)
}

extern "C" fn on_deliver(handle: u64, _: *const Name, node: u32, _: u32, message: *const c_void, len: usize) {
    // SAFETY: cpg.h: `msg` has `msg_len` bytes during the callback.
    let bytes = unsafe { list(message.cast::<u8>(), len) };
    push(Raw::Deliver { handle, node, bytes });
}

extern "C" fn on_confchg(
    handle: u64,
    _: *const Name,
    members: *const Address,
    members_len: usize,
    left: *const Address,
    left_len: usize,
    joined: *const Address,
    joined_len: usize,
) {
    // SAFETY: cpg.h: each list has as many entries as the number after it, during the callback.
    let (members, left, joined) = unsafe {
        (
            list(members, members_len),
            list(left, left_len),
            list(joined, joined_len),
        )
    };
    push(Raw::Confchg {
        handle,
        members,
        left,
        joined,
    });
}

extern "C" fn on_totem(handle: u64, ring: RingId, _: u32, _: *const u32) {
    push(Raw::Ring { handle, ring });
}

extern "C" fn on_quorum(_: u64, quorate: u32, ring: RingId, len: u32, members: *const u32) {
    // SAFETY: quorum.h: the list has as many entries as the number before it, during the callback.
    let members = unsafe { list(members, count(len)) };
    let quorate = quorate != 0;
    push(Raw::Quorum {
        quorate,
        ring,
        members,
    });
}

extern "C" fn on_nodelist(
    _: u64,
    _: RingId,
    _: u32,
    _: *const u32,
    joined_len: u32,
    joined: *const u32,
    left_len: u32,
    left: *const u32,
) {
    // SAFETY: quorum.h: each list has as many entries as the number before it, during the callback.
    let (joined, left) = unsafe { (list(joined, count(joined_len)), list(left, count(left_len))) };
    push(Raw::Nodes { joined, left });
}

extern "C" fn on_shutdown(_: u64, flags: c_int) {
    // COROSYNC_CFG_SHUTDOWN_FLAG_REQUEST: the others only tell.
    if flags == 0 {
        push(Raw::Shutdown);
    }
}

/// What the loader said: it names the library or the call, and the error itself only what was tried.
fn said(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// A library and the prefix of its calls.
#[derive(Debug)]
struct Lib(Library);

impl Lib {
    fn open(name: &str) -> Result<Self, String> {
        // SAFETY: corosync's client libraries have no constructors that could hurt, and are never closed while used.
        let library = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) };
        library.map(Self).map_err(|error| said(&error))
    }

    /// A call of the library.
    ///
    /// # Safety
    /// `T` must be the type of the function, as its header says.
    unsafe fn call<T>(&self, name: &str) -> Result<Symbol<T>, String> {
        // SAFETY: the caller vouches for the type.
        unsafe { self.0.get::<T>(name.as_bytes()) }.map_err(|error| said(&error))
    }
}

type Simple = unsafe extern "C" fn(u64) -> c_int;
type FdGet = unsafe extern "C" fn(u64, *mut c_int) -> c_int;
type Dispatch = unsafe extern "C" fn(u64, c_int) -> c_int;
type OnGroup = unsafe extern "C" fn(u64, *const Name) -> c_int;

/// All calls we use.
#[derive(Debug)]
pub(super) struct Calls {
    cpg_init: Symbol<unsafe extern "C" fn(*mut u64, c_int, *const CpgModel, *mut c_void) -> c_int>,
    cpg_fd: Symbol<FdGet>,
    cpg_dispatch: Symbol<Dispatch>,
    cpg_join: Symbol<OnGroup>,
    cpg_leave: Symbol<OnGroup>,
    cpg_mcast: Symbol<unsafe extern "C" fn(u64, c_int, *const IoVec, u32) -> c_int>,
    cpg_iterate: Symbol<unsafe extern "C" fn(u64, c_int, *const Name, *mut u64) -> c_int>,
    cpg_next: Symbol<unsafe extern "C" fn(u64, *mut Description) -> c_int>,
    cpg_iterated: Symbol<Simple>,
    cpg_finalize: Symbol<Simple>,
    quorum_init:
        Symbol<unsafe extern "C" fn(*mut u64, c_int, *const QuorumModel, *mut u32, *mut c_void) -> c_int>,
    quorum_fd: Symbol<FdGet>,
    quorum_dispatch: Symbol<Dispatch>,
    quorum_track: Symbol<unsafe extern "C" fn(u64, u32) -> c_int>,
    quorum_finalize: Symbol<Simple>,
    cfg_init: Symbol<unsafe extern "C" fn(*mut u64, *const CfgCallbacks) -> c_int>,
    cfg_fd: Symbol<FdGet>,
    cfg_dispatch: Symbol<Dispatch>,
    cfg_local: Symbol<unsafe extern "C" fn(u64, *mut u32) -> c_int>,
    cfg_kill: Symbol<unsafe extern "C" fn(u64, u32, *const c_char) -> c_int>,
    cfg_reply: Symbol<unsafe extern "C" fn(u64, c_int) -> c_int>,
    cfg_addrs: Symbol<unsafe extern "C" fn(u64, u32, usize, *mut c_int, *mut NodeAddress) -> c_int>,
    cfg_finalize: Symbol<Simple>,
    cmap_init: Symbol<unsafe extern "C" fn(*mut u64) -> c_int>,
    cmap_get: Symbol<unsafe extern "C" fn(u64, *const c_char, *mut c_void, *mut usize, *mut c_int) -> c_int>,
    cmap_finalize: Symbol<Simple>,
    /// Last: dropped after the calls.
    _libraries: [Lib; 4],
}

/// Which service a handle is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Cpg,
    Quorum,
    Cfg,
}

/// The libraries of corosync 3 for cpg, quorum, cfg and cmap.
pub(super) const LIBRARIES: [&str; 4] = ["libcpg.so.4", "libquorum.so.5", "libcfg.so.7", "libcmap.so.4"];

impl Calls {
    /// Loads the libraries: [`LIBRARIES`].
    pub(super) fn load(names: [&str; 4]) -> Result<Self, String> {
        let [cpg, quorum, cfg, cmap] = names.map(Lib::open);
        let (cpg, quorum, cfg, cmap) = (cpg?, quorum?, cfg?, cmap?);
        // SAFETY: the types of the fields are those of cpg.h, quorum.h, cfg.h and cmap.h of corosync 3, whose
        // libraries have these version numbers; handles are u64, enums are int.
        unsafe {
            Ok(Self {
                cpg_init: cpg.call("cpg_model_initialize")?,
                cpg_fd: cpg.call("cpg_fd_get")?,
                cpg_dispatch: cpg.call("cpg_dispatch")?,
                cpg_join: cpg.call("cpg_join")?,
                cpg_leave: cpg.call("cpg_leave")?,
                cpg_mcast: cpg.call("cpg_mcast_joined")?,
                cpg_iterate: cpg.call("cpg_iteration_initialize")?,
                cpg_next: cpg.call("cpg_iteration_next")?,
                cpg_iterated: cpg.call("cpg_iteration_finalize")?,
                cpg_finalize: cpg.call("cpg_finalize")?,
                quorum_init: quorum.call("quorum_model_initialize")?,
                quorum_fd: quorum.call("quorum_fd_get")?,
                quorum_dispatch: quorum.call("quorum_dispatch")?,
                quorum_track: quorum.call("quorum_trackstart")?,
                quorum_finalize: quorum.call("quorum_finalize")?,
                cfg_init: cfg.call("corosync_cfg_initialize")?,
                cfg_fd: cfg.call("corosync_cfg_fd_get")?,
                cfg_dispatch: cfg.call("corosync_cfg_dispatch")?,
                cfg_local: cfg.call("corosync_cfg_local_get")?,
                cfg_kill: cfg.call("corosync_cfg_kill_node")?,
                cfg_reply: cfg.call("corosync_cfg_replyto_shutdown")?,
                cfg_addrs: cfg.call("corosync_cfg_get_node_addrs")?,
                cfg_finalize: cfg.call("corosync_cfg_finalize")?,
                cmap_init: cmap.call("cmap_initialize")?,
                cmap_get: cmap.call("cmap_get")?,
                cmap_finalize: cmap.call("cmap_finalize")?,
                _libraries: [cpg, quorum, cfg, cmap],
            })
        }
    }

    /// Connects to a service.
    pub(super) fn connect(&self, service: Service) -> Result<u64, c_int> {
        let mut handle = 0;
        let cpg = CpgModel {
            model: MODEL_V1,
            deliver: on_deliver,
            confchg: on_confchg,
            totem: on_totem,
            flags: DELIVER_INITIAL_TOTEM_CONF,
        };
        let quorum = QuorumModel {
            model: MODEL_V1,
            notify: on_quorum,
            nodelist: on_nodelist,
        };
        let cfg = CfgCallbacks {
            shutdown: on_shutdown,
        };
        let mut kind = 0;
        // SAFETY: out-parameters and models outlive the calls; the libraries copy the models.
        let result = unsafe {
            match service {
                Service::Cpg => (self.cpg_init)(&raw mut handle, MODEL_V1, &raw const cpg, ptr::null_mut()),
                Service::Quorum => (self.quorum_init)(
                    &raw mut handle,
                    MODEL_V1,
                    &raw const quorum,
                    &raw mut kind,
                    ptr::null_mut(),
                ),
                Service::Cfg => (self.cfg_init)(&raw mut handle, &raw const cfg),
            }
        };
        if result == OK { Ok(handle) } else { Err(result) }
    }

    /// The descriptor that says when there is something to dispatch.
    pub(super) fn fd(&self, service: Service, handle: u64) -> Result<RawFd, c_int> {
        let mut fd = -1;
        // SAFETY: the out-parameter outlives the call.
        let result = unsafe {
            match service {
                Service::Cpg => (self.cpg_fd)(handle, &raw mut fd),
                Service::Quorum => (self.quorum_fd)(handle, &raw mut fd),
                Service::Cfg => (self.cfg_fd)(handle, &raw mut fd),
            }
        };
        if result == OK && fd >= 0 {
            Ok(fd)
        } else {
            Err(result)
        }
    }

    /// Runs the callbacks that are due.
    pub(super) fn dispatch(&self, service: Service, handle: u64) -> c_int {
        // SAFETY: plain values; callbacks are ours, and do not call the libraries.
        unsafe {
            match service {
                Service::Cpg => (self.cpg_dispatch)(handle, DISPATCH_ALL),
                Service::Quorum => (self.quorum_dispatch)(handle, DISPATCH_ALL),
                Service::Cfg => (self.cfg_dispatch)(handle, DISPATCH_ALL),
            }
        }
    }

    /// Gives a connection up.
    pub(super) fn finalize(&self, service: Service, handle: u64) {
        // SAFETY: plain values; the owner calls this once per handle.
        let _gone = unsafe {
            match service {
                Service::Cpg => (self.cpg_finalize)(handle),
                Service::Quorum => (self.quorum_finalize)(handle),
                Service::Cfg => (self.cfg_finalize)(handle),
            }
        };
    }

    /// Asks for news of the quorum.
    pub(super) fn track_quorum(&self, handle: u64) -> c_int {
        // SAFETY: plain values.
        unsafe { (self.quorum_track)(handle, TRACK_CHANGES) }
    }

    /// Joins (or leaves) a group.
    pub(super) fn join(&self, handle: u64, group: &str, join: bool) -> c_int {
        let Some(name) = Name::new(group) else {
            return ERR_LIBRARY;
        };
        let call = if join { &self.cpg_join } else { &self.cpg_leave };
        // SAFETY: the name outlives the call.
        unsafe { call(handle, &raw const name) }
    }

    /// Sends to the group of the handle.
    pub(super) fn send(&self, handle: u64, bytes: &[u8]) -> c_int {
        let part = IoVec {
            base: bytes.as_ptr().cast(),
            len: bytes.len(),
        };
        // SAFETY: one part, whose bytes outlive the call; they are only read.
        unsafe { (self.cpg_mcast)(handle, TYPE_AGREED, &raw const part, 1) }
    }

    /// The nodes of all processes in a group, whether or not we are in it: a copy that corosync makes of its list.
    pub(super) fn members(&self, cpg: u64, group: &str) -> Result<Vec<u32>, c_int> {
        let mut iteration = 0;
        // SAFETY: no name is wanted for all groups; the out-parameter outlives the call.
        let result = unsafe { (self.cpg_iterate)(cpg, ITERATION_ALL, ptr::null(), &raw mut iteration) };
        if result != OK {
            return Err(result);
        }
        let mut found = Vec::new();
        let result = loop {
            let mut member = Description {
                group: Name {
                    length: 0,
                    value: [0; NAME_MAX],
                },
                node: 0,
                pid: 0,
            };
            // SAFETY: the out-parameter outlives the call.
            let result = unsafe { (self.cpg_next)(iteration, &raw mut member) };
            if result != OK {
                break result;
            }
            let name = member.group.value.get(..count(member.group.length));
            let name = name.unwrap_or(&[]);
            // Lock daemons count the zero byte in.
            if name.strip_suffix(&[0]).unwrap_or(name) == group.as_bytes() {
                found.push(member.node);
            }
        };
        // SAFETY: a plain value; the handle was just made.
        let _gone = unsafe { (self.cpg_iterated)(iteration) };
        if result == NO_SECTIONS {
            Ok(found)
        } else {
            Err(result)
        }
    }

    /// Our node.
    pub(super) fn local_node(&self, cfg: u64) -> Result<u32, c_int> {
        let mut node = 0;
        // SAFETY: the out-parameter outlives the call.
        let result = unsafe { (self.cfg_local)(cfg, &raw mut node) };
        if result == OK { Ok(node) } else { Err(result) }
    }

    /// Throws a node out.
    pub(super) fn kill(&self, cfg: u64, node: u32, reason: &CStr) -> c_int {
        // SAFETY: the text outlives the call.
        unsafe { (self.cfg_kill)(cfg, node, reason.as_ptr()) }
    }

    /// Answers a request to stop.
    pub(super) fn answer_shutdown(&self, cfg: u64, allowed: bool) -> c_int {
        // SAFETY: plain values.
        unsafe { (self.cfg_reply)(cfg, c_int::from(allowed)) }
    }

    /// The socket addresses of a node.
    pub(super) fn addresses(&self, cfg: u64, node: u32) -> Result<Vec<[u8; 28]>, c_int> {
        const MAX: usize = 8;
        let mut found = [NodeAddress {
            length: 0,
            address: [0; 28],
        }; MAX];
        let mut len: c_int = 0;
        // SAFETY: the array has MAX places, which is what the call is told; both outlive it.
        let result = unsafe { (self.cfg_addrs)(cfg, node, MAX, &raw mut len, found.as_mut_ptr()) };
        if result != OK {
            return Err(result);
        }
        let len = usize::try_from(len).unwrap_or(0);
        Ok(found.iter().take(len).map(|address| address.address).collect())
    }

    /// Reads keys of the configuration: each as its bytes, those that are not there as none.
    pub(super) fn read_map(&self, keys: &[CString]) -> Result<Vec<Option<Vec<u8>>>, c_int> {
        let mut handle = 0;
        // SAFETY: the out-parameter outlives the call.
        let result = unsafe { (self.cmap_init)(&raw mut handle) };
        if result != OK {
            return Err(result);
        }
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            let mut value = [0_u8; 512];
            let (mut len, mut kind) = (value.len(), 0);
            // SAFETY: the buffer has `len` bytes, and outlives the call like the other out-parameters.
            let result = unsafe {
                (self.cmap_get)(
                    handle,
                    key.as_ptr(),
                    value.as_mut_ptr().cast(),
                    &raw mut len,
                    &raw mut kind,
                )
            };
            let value = value.get(..len).filter(|_| result == OK);
            values.push(value.map(<[u8]>::to_vec));
        }
        // SAFETY: a plain value; the handle was just made.
        let _gone = unsafe { (self.cmap_finalize)(handle) };
        Ok(values)
    }
}

/// A descriptor of a connection, for waiting.
pub(super) fn borrow<'a>(fd: RawFd, _owner: &'a Calls) -> BorrowedFd<'a> {
    // SAFETY: the descriptor is that of a connection which is open, for its owner holds it and finalizes it only when
    // dropped or after the wait.
    unsafe { BorrowedFd::borrow_raw(fd) }
}
