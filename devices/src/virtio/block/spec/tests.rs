//! Requests, understood and refused.

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    capacity: 16 * SECTOR_SIZE,
    read_only: false,
    discard: true,
    write_zeroes: true,
};

fn header(kind: u32, sector: u64) -> RequestHeader {
    RequestHeader {
        kind: kind.into(),
        reserved: 0.into(),
        sector: sector.into(),
    }
}

fn parse(kind: u32, sector: u64, readable: u64, writable: u64) -> Result<Request, Status> {
    Request::parse(&header(kind, sector), readable, writable, LIMITS)
}

#[test]
fn wire_structures_have_the_specified_sizes() {
    assert_eq!(size_of::<RequestHeader>(), 16);
    assert_eq!(size_of::<Config>(), 60);
    assert_eq!(size_of::<Segment>(), 16);
}

#[test]
fn last_sector_is_on_the_disk_and_the_next_is_not() {
    assert_eq!(
        parse(VIRTIO_BLK_T_IN, 15, 0, 512),
        Ok(Request::Read { offset: 7680 })
    );
    assert_eq!(parse(VIRTIO_BLK_T_IN, 16, 0, 512), Err(Status::IoError));
    assert_eq!(parse(VIRTIO_BLK_T_IN, 15, 0, 1024), Err(Status::IoError));
    assert_eq!(
        parse(VIRTIO_BLK_T_OUT, 15, 512, 0),
        Ok(Request::Write { offset: 7680 })
    );
    assert_eq!(parse(VIRTIO_BLK_T_OUT, 16, 512, 0), Err(Status::IoError));
}

#[test]
fn sector_that_overflows_is_an_error() {
    for sector in [u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 55] {
        assert_eq!(parse(VIRTIO_BLK_T_IN, sector, 0, 512), Err(Status::IoError));
        assert_eq!(
            parse(VIRTIO_BLK_T_OUT, sector, 512, 0),
            Err(Status::IoError)
        );
    }
}

#[test]
fn partial_sector_is_an_error() {
    for len in [0, 1, 511, 513] {
        assert_eq!(parse(VIRTIO_BLK_T_IN, 0, 0, len), Err(Status::IoError));
        assert_eq!(parse(VIRTIO_BLK_T_OUT, 0, len, 0), Err(Status::IoError));
    }
}

#[test]
fn data_of_the_wrong_direction_is_an_error() {
    assert_eq!(parse(VIRTIO_BLK_T_IN, 0, 512, 0), Err(Status::IoError));
    assert_eq!(parse(VIRTIO_BLK_T_IN, 0, 512, 512), Err(Status::IoError));
    assert_eq!(parse(VIRTIO_BLK_T_OUT, 0, 0, 512), Err(Status::IoError));
    assert_eq!(parse(VIRTIO_BLK_T_OUT, 0, 512, 512), Err(Status::IoError));
}

#[test]
fn write_to_read_only_disk_is_an_error() {
    let limits = Limits {
        read_only: true,
        ..LIMITS
    };
    let request = Request::parse(&header(VIRTIO_BLK_T_OUT, 0), 512, 0, limits);
    assert_eq!(request, Err(Status::IoError));
}

fn segment(sector: u64, num_sectors: u32, flags: u32) -> Segment {
    Segment {
        sector: sector.into(),
        num_sectors: num_sectors.into(),
        flags: flags.into(),
    }
}

#[test]
fn ranges_are_whole_and_not_too_many() {
    for (kind, most) in [
        (VIRTIO_BLK_T_DISCARD, DISCARD.count),
        (VIRTIO_BLK_T_WRITE_ZEROES, WRITE_ZEROES.count),
    ] {
        let most = u64::from(most);
        for readable in [0, 1, 15, 17, most * 16 + 16, most * 16 + 1, u64::MAX] {
            assert_eq!(parse(kind, 0, readable, 0), Err(Status::IoError));
        }
        assert_eq!(parse(kind, 0, 16, 1), Err(Status::IoError));
        assert!(parse(kind, u64::MAX, most * 16, 0).is_ok());
    }
}

#[test]
fn ranges_on_a_read_only_disk_are_an_error_and_without_the_feature_unsupported() {
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        let parse = |limits| Request::parse(&header(kind, 0), 16, 0, limits);
        let read_only = Limits {
            read_only: true,
            ..LIMITS
        };
        assert_eq!(parse(read_only), Err(Status::IoError));
        let without = Limits {
            discard: false,
            write_zeroes: false,
            ..LIMITS
        };
        assert_eq!(parse(without), Err(Status::Unsupported));
    }
}

#[test]
fn range_ends_on_the_disk() {
    for write_zeroes in [false, true] {
        let parse = |sector, count| {
            segment(sector, count, 0)
                .parse(write_zeroes, LIMITS)
                .map(|range| (range.offset, range.len))
        };
        assert_eq!(parse(0, 16), Ok((0, 8192)));
        assert_eq!(parse(15, 1), Ok((7680, 512)));
        assert_eq!(parse(16, 0), Ok((8192, 0)));
        for (sector, count) in [
            (0, 17),
            (16, 1),
            (15, 2),
            (17, 0),
            (u64::MAX, 1),
            (u64::MAX / 512, 1),
            (1 << 55, 0),
            (0, u32::MAX),
        ] {
            assert_eq!(
                parse(sector, count),
                Err(Status::IoError),
                "{sector} {count}"
            );
        }
    }
}

#[test]
fn range_is_no_longer_than_told() {
    let limits = Limits {
        capacity: 1 << 50,
        ..LIMITS
    };
    for (write_zeroes, bounds) in [(false, DISCARD), (true, WRITE_ZEROES)] {
        let parse = |count| segment(1, count, 0).parse(write_zeroes, limits);
        assert!(parse(bounds.sectors).is_ok());
        assert_eq!(parse(bounds.sectors + 1), Err(Status::IoError));
    }
}

#[test]
fn flags_that_the_type_does_not_have_are_unsupported() {
    let parse = |write_zeroes, flags| {
        let range = segment(0, 1, flags).parse(write_zeroes, LIMITS);
        range.map(|range| range.unmap)
    };
    assert_eq!(parse(true, 1), Ok(true));
    assert_eq!(parse(true, 0), Ok(false));
    assert_eq!(parse(false, 1), Err(Status::Unsupported));
    for flags in [2, 3, 1 << 31, u32::MAX] {
        assert_eq!(parse(true, flags), Err(Status::Unsupported));
        assert_eq!(parse(false, flags), Err(Status::Unsupported));
    }
}

#[test]
fn identification_needs_room() {
    assert_eq!(parse(VIRTIO_BLK_T_GET_ID, 0, 0, 19), Err(Status::IoError));
    assert_eq!(parse(VIRTIO_BLK_T_GET_ID, 0, 0, 20), Ok(Request::GetId));
}

proptest! {
    #[test]
    fn accepted_data_is_on_the_disk(kind: u32, sector: u64, readable in 0..1_u64 << 34, writable in 0..1_u64 << 34) {
        for kind in [kind, kind % 16] {
            let len = match parse(kind, sector % 32, readable % 10_000, writable % 10_000) {
                Ok(Request::Read { offset }) => offset + writable % 10_000,
                Ok(Request::Write { offset }) => offset + readable % 10_000,
                _ => 0,
            };
            prop_assert!(len <= LIMITS.capacity);
            let beyond = match parse(kind, sector | 1 << 40, readable, writable) {
                Ok(Request::Read { offset } | Request::Write { offset }) => Some(offset),
                _ => None,
            };
            prop_assert_eq!(beyond, None);
        }
    }
}
