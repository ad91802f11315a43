//! Flags of calls ([`Lkf`]) and of results ([`SbFlags`]), spelled and numbered as in the DLM.

use bitflags::bitflags;

bitflags! {
    /// Flags of a call (`DLM_LKF_*`). CANCEL and CONVERT are calls of their own here and are rejected as flags.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Lkf: u32 {
        /// End in `Again` instead of waiting.
        const NOQUEUE = 0x1;
        /// Wire flag of a cancel; use [`crate::Lockspace::cancel`].
        const CANCEL = 0x2;
        /// Wire flag of a conversion; use [`crate::Lockspace::convert`].
        const CONVERT = 0x4;
        /// Move the lock value block.
        const VALBLK = 0x8;
        /// A conversion queues behind earlier conversions instead of being granted in place.
        const QUECVT = 0x10;
        /// Going down from PW or EX invalidates the lock value block.
        const IVVALBLK = 0x20;
        /// Resolve a conversion deadlock by dropping our granted mode to NL.
        const CONVDEADLK = 0x40;
        /// The lock survives its process.
        const PERSISTENT = 0x80;
        /// Queue even into a conversion deadlock.
        const NODLCKWT = 0x100;
        /// Do not count this lock as blocking in deadlock detection.
        const NODLCKBLK = 0x200;
        /// Grant an NL request at once, past all queues.
        const EXPEDITE = 0x400;
        /// With NOQUEUE: tell the holders in the way all the same.
        const NOQUEUEBAST = 0x800;
        /// Queue at the head.
        const HEADQUE = 0x1000;
        /// Ignore queue order.
        const NOORDER = 0x2000;
        /// Adopt an orphan.
        const ORPHAN = 0x4000;
        /// PR will do instead.
        const ALTPR = 0x8000;
        /// CW will do instead.
        const ALTCW = 0x10000;
        /// Unlock even while an operation is outstanding.
        const FORCEUNLOCK = 0x20000;
        /// Without effect since long.
        const TIMEOUT = 0x40000;
    }
}

bitflags! {
    /// Flags of a result (`DLM_SBF_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct SbFlags: u32 {
        /// CONVDEADLK dropped our granted mode to NL.
        const DEMOTED = 0x1;
        /// The lock value block is not to be believed.
        const VALNOTVALID = 0x2;
        /// Granted in the alternative mode.
        const ALTMODE = 0x4;
    }
}
