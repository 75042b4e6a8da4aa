//! A 16550A serial port.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use tracing::error;
use vm_superio::serial::{SerialEvents, SerialState};
use vm_superio::{Serial, Trigger};

use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;
use crate::state::{Persist, Section, StateError};

/// Bytes that the receive FIFO holds.
pub const RECEIVE_FIFO_SIZE: usize = 64;

const KIND: &str = "serial";
const VERSION: u16 = 1;

/// Offset of the transmitter holding register.
const TRANSMIT: u64 = 0;
/// Offset of the modem control register; a write can end the loopback mode, in which the receiver is deaf.
const MODEM_CONTROL: u64 = 4;

/// What the port is connected to.
///
/// [`SerialLine::wait_for_room`] is the only call that may take time. It comes on a vCPU's exit with no lock of the
/// receiver held, so that [`SerialInput::receive`] goes on meanwhile.
pub trait SerialLine: Send + Sync {
    /// Waits until the line can take a byte, or until the guest shall not be held up any longer.
    fn wait_for_room(&self);

    /// Takes a byte that the guest sent, without waiting.
    fn transmit(&self, byte: u8);

    /// The receive FIFO can take bytes again after [`SerialInput::receive`] took less than it was given. It can also
    /// come when nothing was refused. It comes with the receiver locked: no receive from within.
    fn receiver_ready(&self);
}

/// The three roles that the UART model wants to hand out: interrupt, events, output.
#[derive(Clone)]
struct Wires(Arc<Connection>);

struct Connection {
    interrupt: InterruptLine,
    interrupt_failed: AtomicBool,
    line: Arc<dyn SerialLine>,
}

impl Trigger for Wires {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        if let Err(error) = self.0.interrupt.raise()
            && !self.0.interrupt_failed.swap(true, Ordering::Relaxed)
        {
            error!(%error, "cannot raise the interrupt of the serial port");
        }
        Ok(())
    }
}

impl SerialEvents for Wires {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.0.line.receiver_ready();
    }
}

impl Write for Wires {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.0.line.transmit(*byte);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Uart = Serial<Wires, Wires, Wires>;

fn lock(uart: &Mutex<Uart>) -> MutexGuard<'_, Uart> {
    uart.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A 16550A on eight ports, with an edge-triggered interrupt line.
///
/// Its transmitter is always empty: a byte is handed to the [`SerialLine`] as it is written. A line that is full makes
/// the guest's write take as long as [`SerialLine::wait_for_room`] does.
pub struct SerialPort {
    wires: Wires,
    uart: Arc<Mutex<Uart>>,
}

impl SerialPort {
    /// A port in its state after reset, connected to `line`.
    pub fn new(interrupt: InterruptLine, line: Arc<dyn SerialLine>) -> Self {
        let wires = Wires(Arc::new(Connection {
            interrupt,
            interrupt_failed: AtomicBool::new(false),
            line,
        }));
        let uart = Serial::with_events(wires.clone(), wires.clone(), wires.clone());
        Self {
            wires,
            uart: Arc::new(Mutex::new(uart)),
        }
    }

    /// The receiving end, for the thread that has input.
    pub fn input(&self) -> SerialInput {
        SerialInput {
            uart: Arc::downgrade(&self.uart),
        }
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (Ok(offset), [byte]) = (u8::try_from(offset), data) {
            *byte = lock(&self.uart).read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (Ok(register), &[byte]) = (u8::try_from(offset), data) else {
            return;
        };
        let line = &self.wires.0.line;
        if offset == TRANSMIT {
            line.wait_for_room();
        }
        // Neither the interrupt nor the output of this UART can fail, and it has no other error.
        let _ = lock(&self.uart).write(register, byte);
        if offset == MODEM_CONTROL {
            line.receiver_ready();
        }
    }
}

/// The receiving end of a [`SerialPort`]. It does not keep the port alive.
#[derive(Clone)]
pub struct SerialInput {
    uart: Weak<Mutex<Uart>>,
}

impl SerialInput {
    /// Puts the first of `bytes` into the receive FIFO and tells how many it took. It takes none while it is full, in
    /// loopback mode, or when the port is gone; [`SerialLine::receiver_ready`] tells when to try again.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let Some(uart) = self.uart.upgrade() else {
            return 0;
        };
        // The only error there can be is a full FIFO.
        lock(&uart).enqueue_raw_bytes(bytes).unwrap_or(0)
    }
}

/// The registers, by the names that the data sheet of the 16550 gives them.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    receive_fifo: Vec<u8>,
}

impl Persist for SerialPort {
    fn save(&self) -> Section {
        let Self { wires: _, uart } = self;
        let SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = lock(uart).state();
        Section::new(
            KIND,
            VERSION,
            &State {
                baud_divisor_low,
                baud_divisor_high,
                interrupt_enable,
                interrupt_identification,
                line_control,
                line_status,
                modem_control,
                modem_status,
                scratch,
                receive_fifo: in_buffer,
            },
        )
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let State {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            receive_fifo: in_buffer,
        } = section.decode(KIND, VERSION)?;
        let held = in_buffer.len();
        let state = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        };
        let wires = &self.wires;
        let uart = Serial::from_state(&state, wires.clone(), wires.clone(), wires.clone())
            .map_err(|_| StateError::Field {
                kind: KIND,
                field: "receive_fifo",
                value: format!("{held} bytes"),
                expected: format!("at most {RECEIVE_FIFO_SIZE} bytes"),
            })?;
        *lock(&self.uart) = uart;
        Ok(())
    }
}
