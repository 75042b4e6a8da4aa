use super::super::report::Status;
use super::super::tests::tree;
use super::*;

const DEVICE: (&str, &str) = ("/dev/kvm", "");
const INTEL: (&str, &str) = (
    "/proc/cpuinfo",
    "processor\t: 0\nflags\t\t: fpu vmx popcnt\n\n",
);
const AMD_GUEST: (&str, &str) = (
    "/proc/cpuinfo",
    "processor\t: 0\nflags\t\t: fpu svm hypervisor\n\n",
);
const NEITHER: (&str, &str) = (
    "/proc/cpuinfo",
    "processor\t: 0\nmodel name\t: vmx svm\nflags\t\t: fpu hypervisor\n\n",
);

#[test]
fn hardware_is_told_by_the_flags_of_the_processor() {
    let (_keep, root) = tree(&[DEVICE, INTEL]);
    assert_eq!(
        hardware(&root),
        Row::pass("virtualization", "Intel VT-x (vmx)")
    );
    let (_keep, root) = tree(&[DEVICE, AMD_GUEST]);
    let row = hardware(&root);
    assert_eq!(row.status, Status::Pass);
    assert!(row.detail.contains("nested"), "{}", row.detail);
}

#[test]
fn hardware_is_told_by_its_kernel_module_where_flags_are_hidden() {
    let (_keep, root) = tree(&[DEVICE, NEITHER, ("/sys/module/kvm_amd/refcnt", "0")]);
    assert_eq!(software(&root), None);
    assert_eq!(hardware(&root).status, Status::Pass);
}

#[test]
fn software_is_told_by_its_module_or_by_the_absence_of_flags() {
    for (files, evidence) in [
        (
            vec![DEVICE, NEITHER, ("/sys/module/kvm_pvm/refcnt", "0")],
            "kvm_pvm",
        ),
        (
            vec![DEVICE, INTEL, ("/sys/module/kvm_pvm/refcnt", "0")],
            "kvm_pvm",
        ),
        (vec![DEVICE, NEITHER], "neither vmx nor svm"),
    ] {
        let (_keep, root) = tree(&files);
        let reason = software(&root).unwrap();
        assert!(reason.contains("KVM on this host is software"), "{reason}");
        assert!(reason.contains(evidence), "{reason}");
        let row = hardware(&root);
        assert_eq!((row.status, row.detail), (Status::Fail, reason));
    }
}

#[test]
fn a_host_without_virtualization_is_told_where_to_enable_it() {
    let (_keep, root) = tree(&[NEITHER]);
    let row = hardware(&root);
    assert_eq!(row.status, Status::Fail);
    assert!(row.mend.unwrap().contains("nested virtualization"));
    let (_keep, root) = tree(&[("/proc/cpuinfo", "flags\t: fpu\n")]);
    assert!(hardware(&root).mend.unwrap().contains("firmware"));
}

#[test]
fn an_absent_device_is_a_failure_with_the_modules_to_load() {
    let (_keep, root) = tree(&[]);
    let row = device(&root);
    assert_eq!(row.status, Status::Fail);
    assert!(row.mend.unwrap().contains("modprobe kvm_intel"));
}

#[test]
fn a_device_that_is_not_kvm_is_a_failure() {
    let (_keep, root) = tree(&[DEVICE]);
    let row = device(&root);
    assert_eq!(
        (row.status, row.detail.as_str()),
        (Status::Fail, "/dev/kvm opens and is not KVM")
    );
}

#[test]
fn the_group_to_join_is_the_owner_of_the_device() {
    let (_keep, root) = tree(&[DEVICE]);
    let gid = std::fs::metadata(root.path("/dev/kvm")).unwrap().gid();
    std::fs::create_dir(root.path("/etc")).unwrap();
    std::fs::write(
        root.path("/etc/group"),
        format!("other:x:99999:\nvirt:x:{gid}:me\n"),
    )
    .unwrap();
    assert!(join_group(&root).starts_with("usermod -aG virt USER"));
    std::fs::write(root.path("/etc/group"), "").unwrap();
    assert!(join_group(&root).starts_with("chgrp kvm /dev/kvm"));
}

#[test]
fn missing_capabilities_are_named() {
    assert_eq!(needed(None).status, Status::Pass);
    let row = needed(Some(&["KVM_CAP_IRQFD"]));
    assert_eq!(
        (row.status, row.detail.as_str()),
        (Status::Fail, "missing: KVM_CAP_IRQFD")
    );
    let row = wanted(|cap| cap != Cap::Xcrs);
    assert_eq!(row.status, Status::Warn);
    assert_eq!(row.detail, "missing: KVM_CAP_XCRS (guests have no AVX)");
    assert_eq!(wanted(|_| true).status, Status::Pass);
}

#[test]
fn a_guest_that_does_not_run_is_a_failure() {
    assert_eq!(guest_code(&Outcome::Halted, None).status, Status::Pass);
    let refused = Outcome::Refused("KVM_EXIT_INTERNAL_ERROR".to_owned());
    let row = guest_code(&refused, Some("software".to_owned()));
    assert_eq!(row.status, Status::Fail);
    assert!(row.mend.unwrap().contains("whose KVM is hardware"));
    assert!(guest_code(&refused, None).mend.unwrap().contains("dmesg"));
}
