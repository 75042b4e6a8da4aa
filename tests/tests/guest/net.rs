//! The network, through a tap in a namespace of each test's own.

use std::process::Stdio;

use anyhow::{Context, Result};
use serde_json::json;
use tests::api::Api;
use tests::{Guest, Network, Running, Shell, assets, eventually};

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

/// A tap with several queues, and a guest with two processors on 4 of them.
fn with_four_pairs(network: &Network, script: &str) -> Result<Running> {
    network.host("ip tuntap add dev tap0 mode tap multi_queue vnet_hdr")?;
    network.host(&format!(
        "ip address add {}/24 dev tap0; ip link set tap0 up",
        Network::HOST
    ))?;
    let guest = Guest::new()
        .network(network)
        .cpus("boot=2")
        .args(&["--net", "tap=tap0,num_queues=8"])
        .memory("size=256M")
        .tools()?
        .script(&format!("{UP}; echo up; {script}"))
        .start()?;
    guest.wait_for("up\n")?;
    Ok(guest)
}

/// The rates that iperf3 told of what was received, in Kbit/s.
fn rates(output: &str) -> Vec<f64> {
    let lines = output.lines().filter(|line| line.ends_with("receiver"));
    let lines = lines.filter(|line| !line.contains("[SUM]"));
    let words = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    // The number before its unit, wherever the columns begin.
    let rate = |words: Vec<&str>| {
        let unit = words.iter().position(|word| *word == "Kbits/sec")?;
        words.get(unit.checked_sub(1)?)?.parse().ok()
    };
    words.filter_map(rate).collect()
}

#[test]
fn four_queue_pairs_move_data_both_ways() -> Result<()> {
    let network = Network::new()?;
    let mut server = network
        .command(&["iperf3", "--server"])
        .stdout(Stdio::null())
        .spawn()?;
    let client = "tools iperf3 -c 192.168.250.1 -t 2 -f k";
    let guest = with_four_pairs(
        &network,
        &format!(
            "tools ethtool -l eth0; tools ethtool -L eth0 combined 4 && tools ethtool -l eth0 &&
             {client} -P 2 && {client} -P 2 --reverse && {client} -u -b 2M && {client} -u -b 2M --reverse;
             echo status $?; tools ethtool -L eth0 combined 1 && {client}; echo status $?;
             grep -c virtio /proc/interrupts; grep 'virtio.*output\\|virtio.*input' /proc/interrupts"
        ),
    )?;
    let output = guest.wait()?.output();
    server.kill()?;
    server.wait()?;
    let output = output?;
    let channels: Vec<_> = output
        .lines()
        .filter_map(|line| line.strip_prefix("Combined:"))
        .map(str::trim)
        .collect();
    // At most and in use, before and after: as many pairs as processors at first.
    assert_eq!(channels, ["4", "2", "4", "4"], "{output}");
    assert_eq!(output.matches("status 0").count(), 2, "{output}");
    let rates = rates(&output);
    assert_eq!(rates.len(), 7, "{output}");
    assert!(rates.iter().all(|&rate| rate > 0.0), "{output}");
    Ok(())
}

#[test]
fn guest_switches_offloads_and_changes_its_address() -> Result<()> {
    let network = Network::new()?;
    let mut guest = connected(
        &network,
        "tools ethtool -k eth0; tools ethtool -K eth0 rx-gro-hw off && tools ethtool -K eth0 tx off tso off;
         tools ethtool -k eth0;
         ip link set eth0 down; ip link set eth0 address 02:00:00:00:12:34 && ip link set eth0 up;
         cat /sys/class/net/eth0/address; ping -c 3 -w 20 192.168.250.1 && echo pinged; read line",
    )?;
    guest.wait_for("pinged")?;
    let neighbours = network.host("ip neighbour show dev tap0")?;
    assert!(neighbours.contains("02:00:00:00:12:34"), "{neighbours}");
    guest.send("\n")?;
    let output = guest.wait()?.output()?;
    let state = |feature: &str| -> Vec<String> {
        let lines = output.lines().map(str::trim);
        lines
            .filter_map(|line| line.strip_prefix(feature)?.strip_prefix(": "))
            .map(|state| state.split(' ').next().unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!(state("rx-gro-hw"), ["on", "off"], "{output}");
    assert_eq!(state("tx-checksumming"), ["on", "off"], "{output}");
    assert_eq!(state("tcp-segmentation-offload"), ["on", "off"], "{output}");
    Ok(())
}

/// A guest with a network called `lan`, whose commands are answered over its serial port.
fn shell(network: &Network, net: &str) -> Result<(Shell, Api)> {
    let guest = Guest::new()
        .kernel(assets::vmlinux()?)
        .network(network)
        .args(&["--net", &format!("{net},id=lan")])
        .api();
    let mut shell = Shell::start(guest)?;
    let api = shell.vmm().api()?;
    shell.run(UP)?;
    shell.run_until(CARRIER, "1")?;
    Ok((shell, api))
}

const CARRIER: &str = "cat /sys/class/net/eth0/carrier";

fn counter(api: &Api, name: &str) -> Result<u64> {
    let counters = api.get("vm.counters")?.body;
    counters["lan"][name]
        .as_u64()
        .with_context(|| format!("no counter {name} in {counters}"))
}

#[test]
fn link_that_the_api_sets_is_the_carrier_of_the_guest() -> Result<()> {
    let network = Network::new()?;
    network.add_tap("tap0")?;
    let (mut shell, api) = shell(&network, "tap=tap0")?;
    let ping = "ping -c 1 -w 5 192.168.250.1 >/dev/null && echo there || echo lost";
    assert_eq!(shell.run(ping)?, "there");
    api.done("vm.set-link", Some(&json!({"id": "lan", "up": false})))?;
    shell.run_until(CARRIER, "0")?;
    let lost = network.host("ping -c 2 -w 4 192.168.250.2 || busybox ping -c 2 -w 4 192.168.250.2");
    assert!(lost.is_err(), "{lost:?}");
    assert!(counter(&api, "rx_link_down")? >= 1);
    assert_eq!(counter(&api, "link_downs")?, 1);
    api.done("vm.set-link", Some(&json!({"id": "lan", "up": true})))?;
    shell.run_until(CARRIER, "1")?;
    assert_eq!(shell.run(ping)?, "there");
    let unknown = json!({"id": "nobody", "up": true});
    assert_eq!(api.put_json("vm.set-link", &unknown)?.status, 404);
    api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn tap_that_is_deleted_takes_the_link_down_and_the_guest_goes_on() -> Result<()> {
    let network = Network::new()?;
    network.add_tap("tap0")?;
    let (mut shell, api) = shell(&network, "tap=tap0")?;
    network.host("ip link set tap0 down")?;
    shell.run("ping -c 1 -w 2 192.168.250.1 >/dev/null; true")?;
    shell.run_until(CARRIER, "0")?;
    network.host("ip link set tap0 up")?;
    shell.run_until(CARRIER, "1")?;
    network.host("ip link delete tap0")?;
    shell.run_until(CARRIER, "0")?;
    shell.run("ping -c 1 -w 2 192.168.250.1 >/dev/null; true")?;
    eventually("what is sent is lost and counted", || {
        Ok(counter(&api, "tx_link_down")? >= 1)
    })?;
    assert_eq!(shell.run("uname")?, "Linux");
    api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn macvtap_carries_packets_and_its_end_takes_the_link_down() -> Result<()> {
    let network = Network::new()?;
    // Two ends of a cable: the macvtap is on one, and the host's address on the other.
    network.host(
        "modprobe macvtap 2>/dev/null; ip link add up0 type veth peer name down0 &&
         ip address add 192.168.250.1/24 dev up0 && ip link set up0 up && ip link set down0 up &&
         ip link add link down0 name mv0 type macvtap mode bridge && ip link set mv0 up",
    )?;
    let (mut shell, api) = shell(&network, "tap=mv0")?;
    let address = network.host("cat /sys/class/net/mv0/address || ip -o link show mv0")?;
    let guest = shell.run("cat /sys/class/net/eth0/address")?;
    assert!(address.contains(&guest), "{guest} in {address}");
    let ping = "ping -c 2 -w 20 192.168.250.1 >/dev/null && echo there || echo lost";
    assert_eq!(shell.run(ping)?, "there");
    network.host("ip link delete mv0")?;
    shell.run_until(CARRIER, "0")?;
    api.done("vmm.shutdown", None)?;
    Ok(())
}
