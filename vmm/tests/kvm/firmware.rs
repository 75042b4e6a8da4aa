//! Firmware: an image that is entered as a kernel is, and finds everything else by itself.

use vmm::exit_status::ExitStatus;

use crate::code::{Code, SCRATCH};
use crate::guest::{Built, Setup, eventually, word};

/// A machine whose firmware is `code`.
fn setup(code: Code) -> Setup {
    let mut setup = Setup::new(code);
    setup.config.payload.firmware = setup.config.payload.kernel.take();
    setup.config.validate().unwrap();
    setup
}

#[test]
fn firmware_is_told_of_memory_and_tables_by_pvh() {
    // ebx has the address of hvm_start_info: magic, flags at 0x0c, rsdp_paddr at 0x20, memmap_entries at 0x30.
    let code = [(0_u8, 0), (0x0c, 4), (0x20, 8), (0x30, 12)]
        .into_iter()
        .fold(Code::new(), |code, (field, at)| {
            code.bytes(&[0x8b, 0x43, field]).store_eax(SCRATCH + at)
        })
        .store32(SCRATCH + 16, 1)
        .stop();
    let built = Built::new(&setup(code));
    let running = built.paused.resume();
    eventually("the end", || word(running.memory(), SCRATCH + 16) == 1);
    let memory = running.memory();
    assert_eq!(word(memory, SCRATCH), 0x336e_c578);
    assert_eq!(word(memory, SCRATCH + 4), 0, "no modules");
    let rsdp = word(memory, SCRATCH + 8);
    assert_eq!(word(memory, rsdp).to_le_bytes(), *b"RSD ");
    assert!(word(memory, SCRATCH + 12) >= 3);
}

#[test]
fn firmware_finds_the_bridge_and_the_timer_that_it_knows() {
    let read_port = |code: Code| code.bytes(&[0xed]); // in eax, dx
    let timer = |code: Code| read_port(code.bytes(&[0x66, 0xba, 0x08, 0x06]));
    let code = Code::new().load_eax(0xe800_0000).store_eax(SCRATCH);
    let code = timer(code).store_eax(SCRATCH + 4);
    let again = code.here();
    // Until it goes on.
    let code = timer(code)
        .bytes(&[0x2b, 0x05]) // sub eax, [SCRATCH + 4]
        .bytes(&(SCRATCH + 4).to_le_bytes())
        .test_eax(0xffff_ffff)
        .jump_if_zero(again)
        .store32(SCRATCH + 8, 1)
        .stop();
    let built = Built::new(&setup(code));
    let running = built.paused.resume();
    eventually("the timer", || word(running.memory(), SCRATCH + 8) == 1);
    assert_eq!(word(running.memory(), SCRATCH), 0x0d57_8086);
}

#[test]
fn firmware_without_a_pvh_entry_is_bad_configuration() {
    let setup = setup(Code::new().stop());
    let path = setup.config.payload.firmware.clone().unwrap();
    std::fs::write(path, b"MZ").unwrap();
    let error = setup.run().unwrap_err();
    assert!(error.to_string().starts_with("--firmware "), "{error}");
    assert_eq!(error.exit_status(), ExitStatus::Configuration);
}
