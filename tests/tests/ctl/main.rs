//! `podvisor ctl` against a VMM that runs.

mod kvm;
