//! KVM: whether it is there, what it can do, and whether it is hardware.

use std::io;
use std::os::unix::fs::MetadataExt;

use kvm_ioctls::{Cap, Kvm};

use super::guest::{self, Outcome};
use super::report::{Row, plain};
use super::root::Root;
use crate::kvm::capabilities::{Host, NotUsable};

/// Capabilities that make guests better and that none fails without.
const WANTED: [(&str, Cap, &str); 3] = [
    (
        "KVM_CAP_TSC_DEADLINE_TIMER",
        Cap::TscDeadlineTimer,
        "guest timers cost more",
    ),
    ("KVM_CAP_XCRS", Cap::Xcrs, "guests have no AVX"),
    (
        "KVM_CAP_X2APIC_API",
        Cap::X2ApicApi,
        "interrupts to many vCPUs cost more",
    ),
];

/// Why KVM on this host is not the processor's own virtualization, in plain words; None where it is, and where there
/// is no KVM at all.
pub fn software_kvm() -> Option<String> {
    let root = Root::host();
    root.exists("/dev/kvm").then(|| software(&root)).flatten()
}

/// The virtualization extension that /proc/cpuinfo shows.
fn extension(root: &Root) -> Option<&'static str> {
    let cpuinfo = root.read("/proc/cpuinfo");
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    flags.split_whitespace().find_map(|flag| match flag {
        "vmx" => Some("Intel VT-x (vmx)"),
        "svm" => Some("AMD-V (svm)"),
        _ => None,
    })
}

fn is_virtual_machine(root: &Root) -> bool {
    let cpuinfo = root.read("/proc/cpuinfo");
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"))
}

fn software(root: &Root) -> Option<String> {
    let hardware_module =
        root.exists("/sys/module/kvm_intel") || root.exists("/sys/module/kvm_amd");
    if hardware_module {
        return None;
    }
    let pagetable_module = root.exists("/sys/module/kvm_pvm");
    if extension(root).is_some() && !pagetable_module {
        return None;
    }
    let evidence = if pagetable_module {
        "the kernel module kvm_pvm serves /dev/kvm"
    } else {
        "/dev/kvm is there though the processor shows neither vmx nor svm"
    };
    Some(format!(
        "KVM on this host is software, not the processor's virtualization ({evidence}): it interprets the guest's \
         kernel code and does not know every instruction, so an unmodified kernel may not run"
    ))
}

/// All rows about KVM.
pub(super) fn rows(root: &Root) -> Vec<Row> {
    let mut rows = vec![device(root), hardware(root)];
    match Host::open() {
        Ok(host) => {
            rows.push(needed(None));
            rows.push(wanted(|cap| host.kvm().check_extension(cap)));
            rows.push(vcpus(host.kvm().get_nr_vcpus(), host.max_vcpus()));
            rows.push(guest_code(&guest::run(host.kvm()), software(root)));
        }
        Err(NotUsable::Missing { missing }) => rows.push(needed(Some(&missing))),
        // The row of the device tells.
        Err(NotUsable::Open(_) | NotUsable::Version { .. }) => {}
        Err(error) => rows.push(Row::fail(
            "kvm capabilities",
            error.to_string(),
            NEWER_KERNEL,
        )),
    }
    rows
}

const NEWER_KERNEL: &str = "run a newer kernel on this host; Linux 5.15 has everything";
const LOAD_MODULE: &str =
    "modprobe kvm_intel, or modprobe kvm_amd; in a container, pass the device in";

/// Whether the device is there, may be used, and is KVM.
fn device(root: &Root) -> Row {
    const CHECK: &str = "kvm";
    if let Err(error) = root.open("/dev/kvm") {
        return match error.kind() {
            io::ErrorKind::NotFound => Row::fail(CHECK, "/dev/kvm is not there", LOAD_MODULE),
            io::ErrorKind::PermissionDenied => Row::fail(
                CHECK,
                "/dev/kvm may not be opened by this user",
                join_group(root),
            ),
            _ => Row::fail(
                CHECK,
                format!("/dev/kvm cannot be opened: {}", plain(&error)),
                LOAD_MODULE,
            ),
        };
    }
    let path = root.path("/dev/kvm");
    let version = std::ffi::CString::new(path.into_os_string().into_encoded_bytes())
        .ok()
        .and_then(|path| Kvm::new_with_path(path).ok())
        .map(|kvm| kvm.get_api_version());
    match version {
        Some(12) => Row::pass(CHECK, "/dev/kvm opens and speaks API version 12"),
        Some(version) if version >= 0 => Row::fail(
            CHECK,
            format!("/dev/kvm speaks API version {version}, not 12"),
            NEWER_KERNEL,
        ),
        _ => Row::fail(
            CHECK,
            "/dev/kvm opens and is not KVM",
            "remove what is in its place, then modprobe kvm_intel or kvm_amd",
        ),
    }
}

/// How to be allowed to open the device, by the group that owns it.
fn join_group(root: &Root) -> String {
    let gid = std::fs::metadata(root.path("/dev/kvm")).map(|metadata| metadata.gid());
    let groups = root.read("/etc/group");
    let name = gid.ok().and_then(|gid| {
        groups.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, id) = (fields.next()?, fields.nth(1)?);
            (id.parse() == Ok(gid)).then(|| name.to_owned())
        })
    });
    match name.as_deref() {
        Some("root") | None => {
            "chgrp kvm /dev/kvm && chmod 660 /dev/kvm, then usermod -aG kvm USER and log in again; \
                                in a container, run with the device's group"
                .to_owned()
        }
        Some(group) => format!(
            "usermod -aG {group} USER and log in again; in a container, run with that group"
        ),
    }
}

/// Whether KVM is the processor's own virtualization.
fn hardware(root: &Root) -> Row {
    const CHECK: &str = "virtualization";
    let outer = is_virtual_machine(root);
    let enable = if outer {
        "this host is itself a virtual machine: enable nested virtualization for it where it runs"
    } else {
        "enable virtualization (VT-x, AMD-V) in the firmware, or use a host that has it"
    };
    if root.exists("/dev/kvm")
        && let Some(reason) = software(root)
    {
        return Row::fail(CHECK, reason, enable);
    }
    match extension(root) {
        Some(extension) if outer => Row::pass(
            CHECK,
            format!(
                "{extension}, nested: this host is itself a virtual machine, so exits cost more"
            ),
        ),
        Some(extension) => Row::pass(CHECK, extension),
        None if root.exists("/dev/kvm") => {
            Row::pass(CHECK, "hardware, by the kernel module that is loaded")
        }
        None => Row::fail(CHECK, "the processor shows neither vmx nor svm", enable),
    }
}

fn needed(missing: Option<&[&'static str]>) -> Row {
    const CHECK: &str = "kvm capabilities";
    match missing {
        None => Row::pass(CHECK, "all that guests need"),
        Some(missing) => Row::fail(
            CHECK,
            format!("missing: {}", missing.join(", ")),
            NEWER_KERNEL,
        ),
    }
}

fn wanted(has: impl Fn(Cap) -> bool) -> Row {
    const CHECK: &str = "kvm extras";
    let missing: Vec<_> = WANTED
        .into_iter()
        .filter(|(_, cap, _)| !has(*cap))
        .map(|(name, _, consequence)| format!("{name} ({consequence})"))
        .collect();
    if missing.is_empty() {
        let all: Vec<_> = WANTED
            .iter()
            .map(|(name, ..)| name.trim_start_matches("KVM_CAP_"))
            .collect();
        return Row::pass(CHECK, all.join(", "));
    }
    Row::warn(
        CHECK,
        format!("missing: {}", missing.join(", ")),
        NEWER_KERNEL,
    )
}

fn vcpus(recommended: usize, max: usize) -> Row {
    let detail = format!("up to {max} in one machine, {recommended} recommended by KVM");
    Row::pass("vcpus", detail)
}

/// What the probing guest tells.
fn guest_code(outcome: &Outcome, software: Option<String>) -> Row {
    const CHECK: &str = "guest code";
    match outcome {
        Outcome::Halted => Row::pass(CHECK, "a small guest ran to its end"),
        Outcome::Refused(what) => Row::fail(
            CHECK,
            format!("a guest of two instructions did not run: {what}"),
            match software {
                Some(_) => "use a host whose KVM is hardware",
                None => "look at the kernel's log (dmesg) for what KVM says",
            },
        ),
    }
}

#[cfg(test)]
#[path = "kvm_tests.rs"]
mod tests;
