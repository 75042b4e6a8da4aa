//! GRUB's environment block, `grubenv` (GRUB manual, 15.2): a text of 1024 bytes.

const SIGNATURE: &str = "# GRUB Environment Block\n";

/// Bytes that are read of an environment block.
pub(in crate::boot_disk) const MAX_LEN: u64 = 64 << 10;

/// The variables in an environment block, in its order; none if it is not one.
pub(in crate::boot_disk) fn parse(bytes: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(bytes);
    let Some(text) = text.strip_prefix(SIGNATURE) else {
        return Vec::new();
    };
    let mut variables = Vec::new();
    let mut rest = text.chars();
    loop {
        let mut line = String::new();
        let mut ended = false;
        while let Some(character) = rest.next() {
            match character {
                '\n' => {
                    ended = true;
                    break;
                }
                // A backslash stands before itself and before the end of a line that belongs to the value.
                '\\' => line.extend(rest.next()),
                other => line.push(other),
            }
        }
        // What fills the block up has no end of line.
        if !ended {
            return variables;
        }
        if let Some((name, value)) = line.split_once('=')
            && !name.starts_with('#')
        {
            variables.push((name.to_owned(), value.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn variables_are_read_up_to_what_fills_the_block() {
        let mut block = format!(
            "{SIGNATURE}# WARNING: Do not edit\nsaved_entry=a>b=c\nkernelopts=root=UUID=1 ro\nempty=\nodd=a\\\\b\\\nc\n"
        );
        block.extend(std::iter::repeat_n('#', 1024 - block.len()));
        let expected = [
            ("saved_entry", "a>b=c"),
            ("kernelopts", "root=UUID=1 ro"),
            ("empty", ""),
            ("odd", "a\\b\nc"),
        ];
        let expected: Vec<_> = expected
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        assert_eq!(parse(block.as_bytes()), expected);
    }

    #[test]
    fn other_files_have_no_variables() {
        assert!(parse(b"saved_entry=1\n").is_empty());
        assert!(parse(&[0xff; 1024]).is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let block = [SIGNATURE.as_bytes(), &bytes].concat();
            parse(&block);
        }
    }
}
