//! Images that were made to do harm. They may be refused, and requests may fail; nothing panics, and nothing but the image
//! changes.

use proptest::prelude::*;

use super::*;

/// A small image with a bit of everything, once made by QEMU and written to by us.
fn image() -> &'static [u8] {
    static IMAGE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        let folder = Folder::new();
        let bytes: Vec<u8> = (0..128 << 10).map(|at| (at >> 12) as u8).collect();
        std::fs::write(folder.path("raw"), bytes).unwrap();
        let options = "cluster_size=512";
        qemu_img(
            folder.0.path(),
            &["convert", "-c", "-O", "qcow2", "-o", options, "raw", "disk"],
        );
        qemu_img(
            folder.0.path(),
            &["resize", "-q", "-f", "qcow2", "disk", "256K"],
        );
        let path = folder.path("disk");
        let disk = open(&path, false, None).unwrap();
        write(&disk, 0, &[1; 16 << 10]);
        disk.write_zeroes(32 << 10, 8 << 10, false).unwrap();
        drop(disk);
        std::fs::read(path).unwrap()
    });
    &IMAGE
}

/// Places of 8 bytes that something is read from: the header, and all tables.
fn fields() -> Vec<usize> {
    let image = image();
    let header = Header::parse(image).unwrap();
    let table = |offset: u64, len: u64| (offset as usize..(offset + len) as usize).step_by(8);
    let mut fields: Vec<usize> = (0..112).step_by(4).collect();
    fields.extend(table(header.l1_offset, header.l1_entries * 8));
    fields.extend(table(header.reftable_offset, 16));
    let tables: Vec<_> = table(header.l1_offset, header.l1_entries * 8)
        .chain(table(header.reftable_offset, 16))
        .map(|at| header::u64_at(image, at) & 0x00ff_ffff_ffff_fe00)
        .filter(|offset| *offset != 0)
        .collect();
    for offset in tables {
        fields.extend(table(offset, 512));
    }
    fields
}

/// Numbers that are likely to be taken wrongly.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0_u32..64).prop_map(|bit| 1 << bit),
        (0_u32..64).prop_map(|bit| (1 << bit) - 1),
        // An entry that names a cluster of the file, in all its forms.
        (0_u64..400, 0_u64..4).prop_map(|(cluster, flags)| (cluster << 9) | (flags << 62)),
        (0_u64..400).prop_map(|cluster| (cluster << 9) | 1),
        Just(u64::MAX),
        Just(0),
    ]
}

/// Does everything to a disk, whatever comes of it.
fn try_everything(disk: &Qcow2Disk) {
    let mut buffer = vec![5; 3000];
    let list = iovecs(&mut buffer, 1);
    // SAFETY: the list is of parts of a buffer that nothing else uses.
    #[expect(unsafe_code)]
    let pieces = unsafe { Pieces::new(&list) };
    let end = disk.size().min(1 << 20);
    for offset in (0..end).step_by(9 * 512).chain([disk.size() - 512]) {
        let _ = disk.read_at(pieces, offset);
    }
    if disk.read_only() {
        return;
    }
    for offset in (0..end.saturating_sub(1 << 13)).step_by(13 * 512) {
        let _ = disk.write_at(pieces, offset);
        let _ = disk.discard(offset + 4096, 2048);
        let _ = disk.write_zeroes(offset + 1024, 2048, offset % 1024 == 0);
    }
    let _ = disk.flush();
    let _ = disk.resize(disk.size().saturating_add(1 << 20));
    let _ = disk.flush();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn spoilt_image_harms_nobody(
        changes in prop::collection::vec((any::<prop::sample::Index>(), number()), 1..6),
        read_only: bool,
    ) {
        let fields = fields();
        let mut bytes = image().to_vec();
        for (field, number) in changes {
            let at = *field.get(&fields);
            bytes[at..at + 8].copy_from_slice(&number.to_be_bytes());
        }
        // A name in the header would need another image.
        bytes[8..20].fill(0);
        let folder = Folder::new();
        let path = folder.path("disk");
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(disk) = open(&path, read_only, None) {
            try_everything(&disk);
            drop(disk);
            let header = std::fs::read(&path).unwrap();
            // Size, tables and the features that are given up are all that may change of it.
            prop_assert_eq!(&header[..24], &bytes[..24]);
            prop_assert_eq!(&header[60..88], &bytes[60..88]);
            prop_assert_eq!(&header[96..112], &bytes[96..112]);
        }
    }

    #[test]
    fn any_header_is_parsed_without_a_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..2048),
        version in 2_u32..4,
        bits in 0_u32..24,
        extensions in 0_u64..2048,
    ) {
        let mut put = |at: usize, value: &[u8]| {
            if let Some(field) = bytes.get_mut(at..at + value.len()) {
                field.copy_from_slice(value);
            }
        };
        put(0, &header::MAGIC.to_be_bytes());
        put(4, &version.to_be_bytes());
        put(8, &extensions.to_be_bytes());
        put(20, &bits.to_be_bytes());
        put(32, &[0; 4]);
        put(72, &[0; 8]);
        put(96, &[0, 0, 0, 4, 0, 0, 0, 112]);
        let _ = Header::parse(&bytes);
    }
}

#[test]
fn tables_that_overlap_are_refused_by_place() {
    let folder = Folder::new();
    let path = folder.path("disk");
    let spoilt = |at: u64, value: u64| {
        let mut bytes = image().to_vec();
        bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_be_bytes());
        std::fs::write(&path, bytes).unwrap();
        open(&path, false, None).unwrap_err().to_string()
    };
    let header = Header::parse(image()).unwrap();
    let at_itself = spoilt(header.l1_offset, (1 << 63) | header.l1_offset);
    assert!(
        at_itself.contains("L1 table and L2 table are both at"),
        "{at_itself}"
    );
    let twice = spoilt(
        header.l1_offset,
        header::u64_at(image(), header.l1_offset as usize + 8),
    );
    assert!(
        twice.contains("L2 table and L2 table are both at"),
        "{twice}"
    );
    let behind = spoilt(header.reftable_offset, 1 << 40);
    assert!(
        behind.contains("a refcount block at 0x10000000000"),
        "{behind}"
    );
}

#[test]
fn guest_cannot_write_to_the_tables_of_its_own_image() {
    let folder = Folder::new();
    let path = folder.path("disk");
    let header = Header::parse(image()).unwrap();
    let table = header::u64_at(image(), header.l1_offset as usize) & 0x00ff_ffff_ffff_fe00;
    for (target, flags) in [
        (0_u64, 1_u64 << 63),
        (header.l1_offset, 1 << 63),
        (table, 1 << 63),
    ] {
        let mut bytes = image().to_vec();
        let entry = target | flags;
        bytes[table as usize..table as usize + 8].copy_from_slice(&entry.to_be_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let disk = open(&path, false, None).unwrap();
        let mut buffer = vec![5; 512];
        let list = iovecs(&mut buffer, 1);
        // SAFETY: the list is of parts of a buffer that nothing else uses.
        #[expect(unsafe_code)]
        let pieces = unsafe { Pieces::new(&list) };
        let result = disk.write_at(pieces, 0);
        // An entry that names no cluster has one allocated.
        assert!(target == 0 || result.is_err());
        assert!(target == 0 || disk.discard(0, 512).is_err());
        disk.flush().unwrap();
        let now = std::fs::read(&path).unwrap();
        let place = target as usize;
        assert!(target == table || now[place..place + 60] == bytes[place..place + 60]);
    }
}

#[test]
fn refcounts_of_nothing_cannot_make_tables_data() {
    let folder = Folder::new();
    let path = folder.path("disk");
    let mut bytes = image().to_vec();
    let header = Header::parse(&bytes).unwrap();
    let block = header::u64_at(&bytes, header.reftable_offset as usize) as usize;
    bytes[block..block + 512].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    let disk = open(&path, false, None).unwrap();
    try_everything(&disk);
    drop(disk);
    assert_eq!(std::fs::read(&path).unwrap()[..24], bytes[..24]);
}
