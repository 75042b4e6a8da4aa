//! The network, through a tap in a namespace of each test's own.

use std::process::Stdio;

use anyhow::Result;
use tests::{Guest, Network, Running};

const UP: &str = "ip address add 192.168.250.2/24 dev eth0 && ip link set eth0 up";

/// A guest on a tap that was made before it, with its address up and a line to wait for.
fn connected(network: &Network, script: &str) -> Result<Running> {
    network.add_tap("tap0")?;
    let guest = Guest::new()
        .network(network)
        .arg("--net")
        .arg("tap=tap0")
        .memory("size=256M")
        .tools()?
        .script(&format!("{UP}; echo up; {script}"))
        .start()?;
    guest.wait_for("up\n")?;
    Ok(guest)
}

#[test]
fn guest_and_host_ping_each_other() -> Result<()> {
    let network = Network::new()?;
    let mut guest = connected(&network, "read line; ping -c 3 -w 20 192.168.250.1")?;
    network.host(&format!(
        "ping -c 3 -w 20 {} || busybox ping -c 3 -w 20 {}",
        Network::GUEST,
        Network::GUEST
    ))?;
    guest.send("\n")?;
    guest.wait()?.output()?;
    Ok(())
}

#[test]
fn iperf3_moves_data_both_ways() -> Result<()> {
    let network = Network::new()?;
    let mut server = network
        .command(&["iperf3", "--server"])
        .stdout(Stdio::null())
        .spawn()?;
    let guest = connected(
        &network,
        "tools iperf3 -c 192.168.250.1 -t 2 -f k && tools iperf3 -c 192.168.250.1 -t 2 -f k --reverse",
    )?;
    let output = guest.wait()?.output();
    server.kill()?;
    server.wait()?;
    let output = output?;
    let received: Vec<f64> = output
        .lines()
        .filter(|line| line.ends_with("receiver"))
        .filter_map(|line| line.split_whitespace().nth(6)?.parse().ok())
        .collect();
    assert_eq!(received.len(), 2, "{output}");
    assert!(received.iter().all(|&rate| rate > 0.0), "{output}");
    Ok(())
}

#[test]
fn files_cross_unchanged_both_ways() -> Result<()> {
    let network = Network::new()?;
    let mut guest = connected(
        &network,
        "nc -l -p 7000 >/tmp/file; sha256sum </tmp/file; nc 192.168.250.1 7001 </tmp/file; read line",
    )?;
    let sums = network.host(
        "file=$(mktemp) back=$(mktemp) silence=$(mktemp -u)
         head -c 4M /dev/urandom >$file
         # A listener whose input ends hangs up on the other side.
         mkfifo $silence
         exec 3<>$silence
         busybox nc -l -p 7001 <&3 >$back &
         until timeout 50 busybox nc 192.168.250.2 7000 <$file; do sleep 0.2; done
         wait
         sha256sum <$file; sha256sum <$back
         rm $file $back $silence",
    )?;
    // Had the guest powered off by itself, it would have taken the last bytes with it.
    guest.send("\n")?;
    let output = guest.wait()?.output()?;
    let sums: Vec<_> = sums.lines().collect();
    assert_eq!(
        sums,
        [
            output
                .lines()
                .find(|line| line.ends_with("  -"))
                .unwrap_or_default(),
            sums[0]
        ]
    );
    Ok(())
}

#[test]
fn named_tap_is_made_with_its_address_and_goes_with_the_machine() -> Result<()> {
    let network = Network::new()?;
    let mut guest = Guest::new()
        .network(&network)
        .arg("--net")
        .arg("tap=made0,ip=192.168.250.1,mask=255.255.255.0,mac=52:54:00:12:34:56,mtu=1400")
        .script(&format!("{UP}; cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; ping -c 1 -w 20 192.168.250.1 >/dev/null && echo up; read line"))
        .start()?;
    guest.wait_for("up\n")?;
    let link = network.host("ip address show dev made0")?;
    assert!(link.contains("192.168.250.1/24"), "{link}");
    assert!(link.contains("mtu 1400"), "{link}");
    guest.send("\n")?;
    let output = guest.wait()?.output()?;
    assert!(output.starts_with("52:54:00:12:34:56\n1400\n"), "{output}");
    let links = network.host("ip -o link")?;
    assert!(!links.contains("made0"), "{links}");
    Ok(())
}

#[test]
fn tap_that_was_there_before_stays() -> Result<()> {
    let network = Network::new()?;
    connected(&network, "true")?.wait()?.output()?;
    let links = network.host("ip -o link")?;
    assert!(links.contains("tap0"), "{links}");
    Ok(())
}

#[test]
fn offloads_are_negotiated() -> Result<()> {
    let network = Network::new()?;
    let output = connected(&network, "cat /sys/class/net/eth0/device/features")?
        .wait()?
        .output()?;
    let features = output.lines().last().unwrap_or_default().to_owned();
    let bit = |bit: usize| features.as_bytes().get(bit) == Some(&b'1');
    // VIRTIO_NET_F_CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6 and MRG_RXBUF.
    for feature in [0, 1, 7, 8, 11, 12, 15] {
        assert!(bit(feature), "feature {feature} in {features}");
    }
    Ok(())
}
