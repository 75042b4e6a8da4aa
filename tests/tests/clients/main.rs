//! The API of a VMM, judged by programs that are not ours.

mod kvm;
