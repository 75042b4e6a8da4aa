use proptest::prelude::*;

use super::*;

/// A PE file with sections.
pub(in crate::boot_disk) fn pe(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut head = vec![0; 0x400];
    head[..2].copy_from_slice(b"MZ");
    head[0x3c..0x40].copy_from_slice(&0x80_u32.to_le_bytes());
    head[0x80..0x84].copy_from_slice(b"PE\0\0");
    head[0x86..0x88].copy_from_slice(&(sections.len() as u16).to_le_bytes());
    head[0x94..0x96].copy_from_slice(&240_u16.to_le_bytes());
    let mut bytes = Vec::new();
    for (index, (name, data)) in sections.iter().enumerate() {
        let at = 0x98 + 240 + 40 * index;
        head[at..at + name.len()].copy_from_slice(name.as_bytes());
        let rounded = data.len().next_multiple_of(512);
        let offset = 0x400 + bytes.len();
        for (place, number) in [(8, data.len()), (16, rounded), (20, offset)] {
            head[at + place..at + place + 4].copy_from_slice(&(number as u32).to_le_bytes());
        }
        bytes.extend_from_slice(data);
        bytes.resize(offset - 0x400 + rounded, 0);
    }
    [head, bytes].concat()
}

#[test]
fn sections_are_found() {
    let file = pe(&[(".linux", b"kernel"), (".cmdline", b"quiet")]);
    let sections = sections(&file).unwrap();
    let named: Vec<_> = sections
        .iter()
        .map(|section| section.name.as_str())
        .collect();
    assert_eq!(named, [".linux", ".cmdline"]);
    let Section { offset, len, .. } = sections[1];
    assert_eq!(&file[offset as usize..][..len as usize], b"quiet");
}

#[test]
fn other_files_have_none() {
    assert_eq!(sections(b""), None);
    assert_eq!(sections(b"MZ"), None);
    let mut file = pe(&[(".linux", b"kernel")]);
    file[0x80] = b'N';
    assert_eq!(sections(&file), None);
}

proptest! {
    #[test]
    fn any_headers_are_taken(place in 0_usize..0x200, bytes in proptest::collection::vec(any::<u8>(), 1..60), len in 0_usize..0x600) {
        let mut file = pe(&[(".linux", b"kernel"), (".osrel", b"ID=x")]);
        file[place..place + bytes.len()].copy_from_slice(&bytes);
        file.truncate(len);
        sections(&file);
    }
}
