//! Goal: headers, chunks, heads and replays agree with what the kernel wrote and did (FORMAT.md section 10 and the
//! fixtures with their replayed twins), and no bytes in a journal do worse than an error.

mod codec;
mod replay;
