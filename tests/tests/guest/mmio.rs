//! A machine without a PCI bus: all its devices by virtio-mmio.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::{Disk, Guest, Network, Shell, assets, eventually};

const MIB: u64 = 1 << 20;

/// Bytes that a program of the guest sends back over vsock, after the greeting.
fn echo(stream: &mut UnixStream, sent: &[u8]) -> Result<Vec<u8>> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(b"CONNECT 52\n")?;
    let mut greeting = Vec::new();
    let mut byte = [0];
    while greeting.last() != Some(&b'\n') && stream.read(&mut byte)? == 1 {
        greeting.push(byte[0]);
    }
    ensure!(greeting.starts_with(b"OK "), "{greeting:?}");
    stream.write_all(sent)?;
    let mut back = vec![0; sent.len()];
    stream.read_exact(&mut back)?;
    Ok(back)
}

#[test]
fn machine_without_pci_has_all_its_devices_before_and_after_a_reboot() -> Result<()> {
    let network = Network::new()?;
    network.add_tap("tap0")?;
    let disk = Disk::new(32 * MIB)?;
    let vsock = disk.dir().join("vsock");
    let guest = Guest::new()
        .kernel(assets::vmlinux()?)
        .network(&network)
        .api()
        .cpus("boot=2")
        .memory("size=256M,hotplug_method=virtio-mem,hotplug_size=128M")
        .arg("--platform")
        .arg("transport=mmio")
        .disk(&disk, ",num_queues=2,id=data")
        .tools()?
        .arg("--net")
        .arg("tap=tap0")
        .arg("--vsock")
        .arg(format!("cid=3,socket={}", vsock.display()));
    let mut shell = Shell::start(guest)?;
    let api = shell.vmm().api()?;

    let mut written = String::new();
    for boot in 1..=2 {
        // Two disks, a network, entropy, sockets and memory; each with a driver, and none on PCI.
        let found = shell.run("ls -d /sys/bus/virtio/devices/*/driver | wc -l")?;
        assert_eq!(found, "6");
        let pci = shell.run("ls /sys/bus/pci/devices 2>/dev/null | wc -l")?;
        assert_eq!(pci, "0");
        let edges = shell.run("grep -c 'IO-APIC.*edge.*virtio' /proc/interrupts")?;
        assert_eq!(edges, "6");

        assert_eq!(shell.run("ls /sys/block/vda/mq | wc -l")?, "2");
        if boot == 1 {
            shell.run("dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null")?;
            shell.run("dd if=/tmp/data of=/dev/vda bs=1M conv=fsync 2>/dev/null")?;
            written = shell.run("sha256sum </tmp/data")?;
        }
        let read =
            shell.run("dd if=/dev/vda bs=1M count=8 iflag=direct 2>/dev/null | sha256sum")?;
        assert_eq!(read, written);
        // Many requests at a time on both queues: one that loses its interrupt hangs.
        shell.run(
            "tools fio --name=verify --filename=/dev/vda --offset=16M --size=4M --rw=randwrite --bs=4k --iodepth=16 \
             --ioengine=libaio --direct=1 --numjobs=2 --offset_increment=4M --verify=crc32c --verify_fatal=1 --minimal \
             >/tmp/fio",
        )?;

        shell.run("ip address add 192.168.250.2/24 dev eth0 && ip link set eth0 up")?;
        shell.run("ping -c 3 -w 20 192.168.250.1")?;
        network.host(&format!("ping -c 3 -w 20 {}", Network::GUEST))?;

        let numbers = "dd if=/dev/hwrng bs=16 count=1 2>/dev/null | xxd -p";
        assert_ne!(shell.run(numbers)?, shell.run(numbers)?);

        shell.run("tools socat -b 4096 VSOCK-LISTEN:52,fork PIPE >/tmp/socat 2>&1 &")?;
        let sent = vec![boot as u8; 4000];
        eventually("the echo of the guest", || {
            let mut stream = UnixStream::connect(&vsock).context("vsock")?;
            Ok(echo(&mut stream, &sent).is_ok_and(|back| back == sent))
        })?;

        shell.run("echo online_movable >/sys/devices/system/memory/auto_online_blocks")?;
        let size = (256 + 128) * MIB;
        api.done("vm.resize", Some(&json!({"desired_ram": size})))?;
        shell.run_until(
            "cat /sys/devices/system/memory/memory*/state | grep -c online | awk '{ print ($1 >= 3) }'",
            "1",
        )?;
        api.done("vm.resize", Some(&json!({"desired_ram": 256 * MIB})))?;

        api.done("vm.pause", None)?;
        api.done("vm.resume", None)?;
        shell.run("ping -c 1 -w 20 192.168.250.1")?;

        let refused = api.put_json(
            "vm.add-disk",
            &json!({"path": disk.path(), "readonly": true}),
        )?;
        assert_eq!(refused.status, 400, "{refused:?}");
        assert!(refused.body.to_string().contains("platform.transport"));
        if boot == 1 {
            shell.vmm().send("reboot -f\n")?;
            shell.wait_for_boot()?;
        }
    }
    let complaints = shell.run(
        "dmesg | grep -E 'ACPI (BIOS )?(Error|Warning|Exception)|virtio.*(fail|error)|nobody cared' || true",
    )?;
    assert_eq!(complaints, "");
    api.done("vmm.shutdown", None)?;
    shell.into_vmm().wait()?.expect_status(0)?;
    Ok(())
}
