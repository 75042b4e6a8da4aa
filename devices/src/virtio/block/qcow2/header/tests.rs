//! Headers, sound and not.

use super::*;

/// The header of a small image of version 3, with extensions.
fn header() -> Vec<u8> {
    let mut bytes = vec![0; 512];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &MAGIC.to_be_bytes());
    put(4, &3_u32.to_be_bytes());
    put(20, &16_u32.to_be_bytes());
    put(24, &(1_u64 << 30).to_be_bytes());
    put(36, &2_u32.to_be_bytes());
    put(40, &(3_u64 << 16).to_be_bytes());
    put(48, &(1_u64 << 16).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    bytes
}

fn with(at: usize, value: &[u8]) -> Result<Header, HeaderError> {
    let mut bytes = header();
    bytes[at..at + value.len()].copy_from_slice(value);
    Header::parse(&bytes)
}

fn refused_field(at: usize, value: &[u8]) -> &'static str {
    match with(at, value) {
        Err(HeaderError::Field { field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn sound_header_is_taken() {
    let header = Header::parse(&header()).unwrap();
    assert_eq!(
        (header.version, header.size, header.backing),
        (3, 1 << 30, None)
    );
}

#[test]
fn fields_are_refused_by_name() {
    assert_eq!(Header::parse(b"QFI"), Err(HeaderError::Magic));
    assert_eq!(with(0, b"QCOW"), Err(HeaderError::Magic));
    assert_eq!(with(7, &[1]), Err(HeaderError::Version(1)));
    assert_eq!(with(35, &[1]), Err(HeaderError::Encrypted("AES")));
    assert_eq!(refused_field(35, &[3]), "crypt_method");
    for bits in [8, 22, 255] {
        assert_eq!(refused_field(23, &[bits]), "cluster_bits");
    }
    assert_eq!(refused_field(24, &[0xff; 8]), "size");
    assert_eq!(refused_field(36, &1_u32.to_be_bytes()), "l1_size");
    assert_eq!(refused_field(36, &u32::MAX.to_be_bytes()), "l1_size");
    assert_eq!(refused_field(40, &512_u64.to_be_bytes()), "l1_table_offset");
    assert_eq!(refused_field(40, &0_u64.to_be_bytes()), "l1_table_offset");
    assert_eq!(
        refused_field(48, &(1_u64 << 60).to_be_bytes()),
        "refcount_table_offset"
    );
    assert_eq!(
        refused_field(56, &0_u32.to_be_bytes()),
        "refcount_table_clusters"
    );
    assert_eq!(
        refused_field(56, &u32::MAX.to_be_bytes()),
        "refcount_table_clusters"
    );
    assert_eq!(refused_field(99, &[7]), "refcount_order");
    assert_eq!(refused_field(100, &96_u32.to_be_bytes()), "header_length");
    assert_eq!(refused_field(100, &u32::MAX.to_be_bytes()), "header_length");
}

#[test]
fn compression_is_told_by_a_longer_header() {
    let mut bytes = header();
    bytes[103] = 112;
    bytes[104] = 1;
    assert_eq!(Header::parse(&bytes), Err(HeaderError::Compression("zstd")));
    bytes[104] = 0;
    Header::parse(&bytes).unwrap();
}

#[test]
fn backing_file_is_read_with_its_format() {
    let mut bytes = header();
    bytes[8..16].copy_from_slice(&256_u64.to_be_bytes());
    bytes[16..20].copy_from_slice(&4_u32.to_be_bytes());
    bytes[104..108].copy_from_slice(&BACKING_FORMAT.to_be_bytes());
    bytes[108..112].copy_from_slice(&3_u32.to_be_bytes());
    bytes[112..115].copy_from_slice(b"raw");
    bytes[256..260].copy_from_slice(b"base");
    let found = Header::parse(&bytes).unwrap().backing.unwrap();
    assert_eq!(
        (found.name.as_str(), found.format.as_deref()),
        ("base", Some("raw"))
    );
    let refused = |at: usize, value: u32| {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        Header::parse(&bytes).unwrap_err()
    };
    assert!(matches!(
        refused(16, 0),
        HeaderError::Field {
            field: "backing_file_size",
            ..
        }
    ));
    assert!(matches!(
        refused(16, 2000),
        HeaderError::Field {
            field: "backing_file_size",
            ..
        }
    ));
    assert!(matches!(
        refused(12, 1 << 17),
        HeaderError::Field {
            field: "backing_file_offset",
            ..
        }
    ));
    bytes[257] = 0xff;
    assert_eq!(
        Header::parse(&bytes),
        Err(HeaderError::Text("backing file name"))
    );
}

#[test]
fn extensions_of_a_wrong_length_are_refused() {
    let mut bytes = header();
    bytes[104..108].copy_from_slice(&FEATURE_NAMES.to_be_bytes());
    bytes[108..112].copy_from_slice(&49_u32.to_be_bytes());
    assert!(matches!(
        Header::parse(&bytes),
        Err(HeaderError::Field { .. })
    ));
    bytes[108..112].copy_from_slice(&48_u32.to_be_bytes());
    Header::parse(&bytes).unwrap();
    bytes[108..112].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(matches!(
        Header::parse(&bytes),
        Err(HeaderError::Field { .. })
    ));
}
