//! The process that reads a disk: `podvisor read-boot-disk`, whose standard input is a socket to the VMM.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;

use super::confine;
use super::find::{self, Found, Limits, Output};
use super::image::{Image, Source};
use super::messages::{self, MAX_READ, Start};
use super::process::PATIENCE;

/// Gives up what the process could do, and then reads disks for the VMM until that closes the socket.
///
/// # Errors
///
/// Standard input is no socket, or the process cannot be confined.
pub fn run() -> anyhow::Result<ExitCode> {
    confine::close_others()?;
    let socket = io::stdin().as_fd().try_clone_to_owned();
    let socket = UnixStream::from(socket.context("there is no standard input")?);
    socket
        .peer_addr()
        .context("standard input is no socket: this is run by the VMM alone")?;
    confine::confine()?;
    let socket = Rc::new(socket);
    loop {
        let mut start = [0; Start::LEN];
        let asked = (&*socket).read_exact(&mut start);
        // The VMM needs no reader any more.
        if asked.is_err() || serve(&socket, Start::from_bytes(start)).is_err() {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Reads one disk.
fn serve(socket: &Rc<UnixStream>, start: Start) -> io::Result<()> {
    // A process that nobody waits for any more ends itself. One that waits is kept for days.
    confine::alarm(2 * PATIENCE);
    let result = find(socket, start);
    confine::alarm(Duration::ZERO);
    result
}

fn find(socket: &Rc<UnixStream>, start: Start) -> io::Result<()> {
    let Start {
        size,
        sector,
        max_kernel,
        max_initrd,
    } = start;
    let disk = Image::new(Box::new(Remote(Rc::clone(socket))), size);
    let limits = Limits {
        kernel: max_kernel,
        initrd: max_initrd,
    };
    let mut to = &**socket;
    match find::boot(&disk, sector, limits, &mut Given(to)) {
        Ok(Found { title, cmdline }) => messages::done(&mut to, &title, &cmdline),
        Err(refusal) => messages::failed(&mut to, &refusal.to_string()),
    }
}

/// The disk, which the VMM reads.
struct Remote(Rc<UnixStream>);

impl Source for Remote {
    fn fill(&mut self, mut offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut socket = &*self.0;
        for piece in buffer.chunks_mut(MAX_READ) {
            let len = piece.len() as u32;
            messages::ask(&mut socket, offset, len)?;
            let mut status = [0];
            socket.read_exact(&mut status)?;
            if status != [0] {
                return Err(io::Error::other("the disk cannot be read"));
            }
            socket.read_exact(piece)?;
            offset += u64::from(len);
        }
        Ok(())
    }
}

/// What is given to the VMM.
struct Given<'a>(&'a UnixStream);

impl Output for Given<'_> {
    fn kernel(&mut self, piece: &[u8]) -> io::Result<()> {
        messages::kernel(&mut self.0, piece)
    }

    fn initrd(&mut self, piece: &[u8]) -> io::Result<()> {
        messages::initrd(&mut self.0, piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_that_waits_has_no_alarm() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let start = Start {
            size: 0,
            sector: 512,
            max_kernel: 1,
            max_initrd: 1,
        };
        serve(&Rc::new(theirs), start).unwrap();
        assert_eq!(confine::alarm(Duration::ZERO), 0);
        let message = messages::Message::receive(&mut &ours).unwrap();
        assert!(
            matches!(message, messages::Message::Failed(_)),
            "{message:?}"
        );
    }
}
