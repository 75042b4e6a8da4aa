//! CPUs: how many, their topology, their clocks.

use anyhow::Result;
use tests::Guest;

fn online(cpus: &str) -> Result<String> {
    Guest::new()
        .cpus(cpus)
        .script("echo $(nproc) $(cat /sys/devices/system/cpu/online)")
        .output()
}

#[test]
fn one_cpu_is_online() -> Result<()> {
    assert_eq!(online("boot=1")?, "1 0");
    Ok(())
}

#[test]
fn two_cpus_are_online() -> Result<()> {
    assert_eq!(online("boot=2")?, "2 0-1");
    Ok(())
}

#[test]
fn four_cpus_are_online() -> Result<()> {
    assert_eq!(online("boot=4")?, "4 0-3");
    Ok(())
}

const TOPOLOGY: &str = "
cd /sys/devices/system/cpu
echo sockets $(cat cpu[0-9]*/topology/physical_package_id | sort -u | wc -l)
echo cores $(cat cpu[0-9]*/topology/core_cpus_list | sort -u | wc -l)
echo threads $(nproc)
";

fn topology(cpus: &str) -> Result<String> {
    let output = Guest::new().cpus(cpus).script(TOPOLOGY).output()?;
    Ok(output.replace('\n', ", "))
}

#[test]
fn cpus_are_cores_of_one_socket() -> Result<()> {
    assert_eq!(topology("boot=4")?, "sockets 1, cores 4, threads 4");
    Ok(())
}

#[test]
fn topology_with_threads_is_seen() -> Result<()> {
    assert_eq!(
        topology("boot=4,topology=2:2:1:1")?,
        "sockets 1, cores 2, threads 4"
    );
    Ok(())
}

#[test]
fn topology_with_two_sockets_is_seen() -> Result<()> {
    assert_eq!(
        topology("boot=4,topology=1:2:1:2")?,
        "sockets 2, cores 4, threads 4"
    );
    Ok(())
}

#[test]
fn timer_is_the_tsc_deadline_timer() -> Result<()> {
    let device = Guest::new()
        .script("cat /sys/devices/system/clockevents/clockevent0/current_device")
        .output()?;
    assert_eq!(device, "lapic-deadline");
    Ok(())
}

#[test]
fn kvm_clock_is_offered() -> Result<()> {
    let sources = Guest::new()
        .script("cat /sys/devices/system/clocksource/clocksource0/available_clocksource")
        .output()?;
    assert!(
        sources.split(' ').any(|source| source == "kvm-clock"),
        "{sources}"
    );
    Ok(())
}

#[test]
fn x2apic_and_the_hypervisor_bit_are_seen() -> Result<()> {
    Guest::new()
        .script("grep -q -w x2apic /proc/cpuinfo && grep -q -w hypervisor /proc/cpuinfo")
        .output()?;
    Ok(())
}
