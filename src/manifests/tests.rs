//! Tables of flags and what becomes of them.
