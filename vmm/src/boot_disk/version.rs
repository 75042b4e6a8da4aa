//! The order of versions, as the UAPI Group's Version Format Specification has it.

use std::cmp::Ordering;

/// Compares two versions: `6.1.0-9` comes before `6.1.0-10`, `1~rc1` before `1`.
pub(super) fn compare(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    loop {
        left = without(left, is_separator);
        right = without(right, is_separator);
        let (a, b) = (left.first().copied(), right.first().copied());
        // What a mark says of a side that the other does not have: `~` puts it before, the others after what has ended.
        if a == Some(b'~') || b == Some(b'~') {
            match one(a, b, b'~') {
                (true, true) => {}
                (here, _) => {
                    return if here {
                        Ordering::Less
                    } else {
                        Ordering::Greater
                    };
                }
            }
            left = &left[1..];
            right = &right[1..];
            continue;
        }
        if a.is_none() || b.is_none() {
            return a.is_some().cmp(&b.is_some());
        }
        let mark = [b'-', b'^', b'.']
            .into_iter()
            .find(|mark| a == Some(*mark) || b == Some(*mark));
        if let Some(mark) = mark {
            match one(a, b, mark) {
                (true, true) => {}
                (here, _) => {
                    return if here {
                        Ordering::Less
                    } else {
                        Ordering::Greater
                    };
                }
            }
            left = &left[1..];
            right = &right[1..];
            continue;
        }
        let order;
        let digits = |byte: &u8| byte.is_ascii_digit();
        if a.is_some_and(|byte| digits(&byte)) || b.is_some_and(|byte| digits(&byte)) {
            let (a, b) = (prefix(left, digits), prefix(right, digits));
            order = number(a, b);
            (left, right) = (&left[a.len()..], &right[b.len()..]);
        } else {
            let letters = |byte: &u8| byte.is_ascii_alphabetic();
            let (a, b) = (prefix(left, letters), prefix(right, letters));
            // Capitals come before the others, as in ASCII.
            order = a.cmp(b);
            (left, right) = (&left[a.len()..], &right[b.len()..]);
        }
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Whether each side begins with `mark`.
fn one(a: Option<u8>, b: Option<u8>, mark: u8) -> (bool, bool) {
    (a == Some(mark), b == Some(mark))
}

fn is_separator(byte: &u8) -> bool {
    !byte.is_ascii_alphanumeric() && !b"-.~^".contains(byte)
}

fn prefix(bytes: &[u8], belongs: impl Fn(&u8) -> bool) -> &[u8] {
    let len = bytes.iter().take_while(|byte| belongs(byte)).count();
    &bytes[..len]
}

fn without(bytes: &[u8], skipped: impl Fn(&u8) -> bool) -> &[u8] {
    &bytes[prefix(bytes, skipped).len()..]
}

/// Digits as numbers of any length. No digits at all are less than any.
fn number(a: &[u8], b: &[u8]) -> Ordering {
    if a.is_empty() || b.is_empty() {
        return a.len().cmp(&b.len());
    }
    let zero = |byte: &u8| *byte == b'0';
    let (a, b) = (without(a, zero), without(b, zero));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn examples_of_the_specification_are_in_order() {
        let chains: &[&[&str]] = &[
            &["11", "11"],
            &["~", ""],
            &[
                "122.1",
                "123~rc1-1",
                "123",
                "123-a",
                "123-a.1",
                "123-1",
                "123-1.1",
                "123^post1",
                "123.a-1",
                "123.1-1",
                "123a-1",
                "124-1",
            ],
            &["6.1.0-9-amd64", "6.1.0-10-amd64"],
            &["5.14.0-70.13.1.el9_0.x86_64", "5.14.0-162.6.1.el9_1.x86_64"],
            &[
                "99",
                "00000000000000000000000000000000000000000000000000000100",
            ],
            &["A", "a"],
        ];
        for chain in chains {
            for pair in chain.windows(2) {
                let expected = if pair[0] == pair[1] {
                    Ordering::Equal
                } else {
                    Ordering::Less
                };
                assert_eq!(compare(pair[0], pair[1]), expected, "{pair:?}");
                assert_eq!(compare(pair[1], pair[0]), expected.reverse(), "{pair:?}");
            }
        }
        assert_eq!(compare("bar_123", "bar123"), Ordering::Equal);
    }

    proptest! {
        #[test]
        fn order_is_one(a in "[0-9a-b.~^_-]{0,6}", b in "[0-9a-b.~^_-]{0,6}", c in "[0-9a-b.~^_-]{0,6}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            if compare(&a, &b) != Ordering::Greater && compare(&b, &c) != Ordering::Greater {
                prop_assert_ne!(compare(&a, &c), Ordering::Greater);
            }
        }
    }
}
