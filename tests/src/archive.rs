//! One file as a cpio archive, for appending to an initramfs.

/// An archive (the kernel's "newc" format) that holds `contents` at `/name`, padded to 4 bytes.
pub fn one_file(name: &str, contents: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    entry(&mut archive, name, 0o100_755, contents);
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: usize, contents: &[u8]) {
    let inode: usize = 0x7000_0000;
    let (uid, gid, links, mtime) = (0, 0, 1, 0);
    let device = [0; 4];
    archive.extend(b"070701");
    let fields = [inode, mode, uid, gid, links, mtime, contents.len()]
        .into_iter()
        .chain(device)
        .chain([name.len() + 1, 0]);
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    pad(archive);
    archive.extend(contents);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}
