//! The command line, as far as it needs no KVM.

use std::fs;

use anyhow::Result;
use assert_cmd::Command;
use tests::assets;
use tests::tiny::Program;

fn podvisor(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(assets::podvisor()?);
    command.args(args);
    Ok(command)
}

/// Runs podvisor with bad flags and gives what it said: one line, with exit status 2.
fn refused(args: &[&str]) -> Result<String> {
    let output = podvisor(args)?.assert().code(2).get_output().clone();
    assert!(output.stdout.is_empty(), "{output:?}");
    Ok(String::from_utf8(output.stderr)?)
}

fn mentions(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
}

#[test]
fn help_fits_80_columns_and_lists_the_flags() -> Result<()> {
    let output = podvisor(&["--help"])?
        .env("COLUMNS", "80")
        .assert()
        .success()
        .get_output()
        .clone();
    let help = String::from_utf8(output.stdout)?;
    let longest = help.lines().map(|line| line.chars().count()).max();
    assert!(longest <= Some(80), "{longest:?} columns:\n{help}");
    mentions(
        &help,
        &[
            "--kernel",
            "--initramfs",
            "--cmdline",
            "--cpus",
            "--memory",
            "--disk",
            "--net",
            "--rng",
            "--vsock",
            "--serial",
            "--no-reboot",
            "--shutdown-timeout",
            "--log-file",
            "check",
            "ctl",
            "completions",
            "Exit status",
            "Escape",
        ],
    );
    Ok(())
}

#[test]
fn version_is_told() -> Result<()> {
    podvisor(&["--version"])?.assert().success();
    Ok(())
}

#[test]
fn version_of_the_api_is_told_under_the_name_of_cloud_hypervisor() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let link = dir.path().join("cloud-hypervisor");
    std::os::unix::fs::symlink(fs::canonicalize(assets::podvisor()?)?, &link)?;
    for flag in ["--version", "-V"] {
        Command::new(&link)
            .arg(flag)
            .assert()
            .success()
            .stdout("cloud-hypervisor v54.0.0\n")
            .stderr("");
    }
    Ok(())
}

#[test]
fn missing_kernel_flag_is_refused() -> Result<()> {
    mentions(&refused(&["--memory", "size=128M"])?, &["kernel"]);
    Ok(())
}

#[test]
fn unknown_key_is_named_with_the_known_ones() -> Result<()> {
    let message = refused(&[
        "--kernel",
        "/nowhere",
        "--disk",
        "path=/dev/null,colour=red",
    ])?;
    mentions(&message, &["colour", "readonly", "serial"]);
    Ok(())
}

#[test]
fn bad_sizes_are_refused_by_name_and_value() -> Result<()> {
    mentions(
        &refused(&["--kernel", "/nowhere", "--memory", "size=many"])?,
        &["size", "many"],
    );
    mentions(
        &refused(&["--kernel", "/nowhere", "--memory", "size=0"])?,
        &["size", "0"],
    );
    Ok(())
}

#[test]
fn zero_cpus_are_refused() -> Result<()> {
    mentions(
        &refused(&["--kernel", "/nowhere", "--cpus", "boot=0"])?,
        &["boot", "0"],
    );
    Ok(())
}

#[test]
fn topology_that_does_not_fit_the_cpus_is_refused() -> Result<()> {
    mentions(
        &refused(&["--kernel", "/nowhere", "--cpus", "boot=3,topology=2:2:1:1"])?,
        &["topology"],
    );
    Ok(())
}

#[test]
fn features_of_later_releases_are_refused_by_name() -> Result<()> {
    let message = refused(&["--kernel", "/nowhere", "--rng", "src=/dev/urandom,iommu=on"])?;
    mentions(&message, &["iommu", "not supported"]);
    Ok(())
}

#[test]
fn firmware_beside_a_kernel_is_refused() -> Result<()> {
    mentions(
        &refused(&["--kernel", "/nowhere", "--firmware", "/nowhere"])?,
        &["payload.firmware", "no kernel beside it"],
    );
    Ok(())
}

#[test]
fn missing_files_are_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let kernel = dir.path().join("kernel");
    fs::write(&kernel, Program::new().elf())?;
    let kernel = kernel.display().to_string();
    mentions(
        &refused(&["--kernel", "/no/such/kernel"])?,
        &["/no/such/kernel"],
    );
    mentions(
        &refused(&["--kernel", &kernel, "--disk", "path=/no/such/disk"])?,
        &["/no/such/disk"],
    );
    mentions(
        &refused(&["--kernel", &kernel, "--initramfs", "/no/such/initramfs"])?,
        &["/no/such/initramfs"],
    );
    Ok(())
}

#[test]
fn file_that_is_no_kernel_is_told_for_what_it_is() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("script.sh");
    fs::write(&file, "#!/bin/sh\necho not a kernel\n")?;
    let path = file.display().to_string();
    mentions(&refused(&["--kernel", &path])?, &[&path, "ELF", "bzImage"]);
    Ok(())
}

#[test]
fn check_lists_what_the_host_can_do() -> Result<()> {
    let output = podvisor(&["check"])?.output()?;
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    mentions(
        &text,
        &[
            "/dev/kvm",
            "/dev/net/tun",
            "io_uring",
            "userfaultfd",
            "memlock",
            "hugepages",
            "landlock",
        ],
    );
    Ok(())
}

#[test]
fn check_as_json_is_json() -> Result<()> {
    let output = podvisor(&["check", "--json"])?.output()?;
    let value: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert!(value.is_array() || value.is_object(), "{value}");
    Ok(())
}

#[test]
fn ctl_tells_of_a_socket_without_a_vmm() -> Result<()> {
    let args = ["ctl", "--api-socket", "/no/such/socket", "ping"];
    let output = podvisor(&args)?.assert().code(1).get_output().clone();
    assert!(output.stdout.is_empty(), "{output:?}");
    let message = String::from_utf8(output.stderr)?;
    mentions(&message, &["--api-socket /no/such/socket", "no VMM"]);
    Ok(())
}

#[test]
fn ctl_refuses_bad_usage_before_it_calls() -> Result<()> {
    let ctl =
        |words: &[&str]| refused(&[&["ctl", "--api-socket", "/no/such/socket"], words].concat());
    mentions(&ctl(&["fly"])?, &["fly"]);
    mentions(&ctl(&["add-disk", "path=/d,colour=red"])?, &["colour"]);
    mentions(&ctl(&["add-disk", "fd=77"])?, &["fd 77"]);
    mentions(&ctl(&["create", "/no/such/file"])?, &["/no/such/file"]);
    mentions(&refused(&["ctl", "ping"])?, &["--api-socket"]);
    Ok(())
}

#[test]
fn completions_and_the_manual_page_are_printed() -> Result<()> {
    for args in [
        &["completions", "bash"][..],
        &["completions", "zsh"],
        &["completions", "fish"],
        &["man"],
    ] {
        let output = podvisor(args)?.assert().success().get_output().clone();
        mentions(&String::from_utf8(output.stdout)?, &["podvisor", "ping"]);
    }
    mentions(&refused(&["completions", "tcsh"])?, &["tcsh", "zsh"]);
    Ok(())
}
