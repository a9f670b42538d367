//! A DER reader for one element at a time, without allocation.
//!
//! x509-parser parses X.509. This module parses what must be checked before or in addition: the size of a
//! certificate without its evidence, before x509-parser allocates for it, and the inner OCTET STRING of the
//! evidence extensions.

/// `SEQUENCE`.
pub(crate) const SEQUENCE: u8 = 0x30;
/// `OCTET STRING`.
pub(crate) const OCTET_STRING: u8 = 0x04;
/// `OBJECT IDENTIFIER`.
pub(crate) const OBJECT_IDENTIFIER: u8 = 0x06;
/// `[3] EXPLICIT`: the extensions of a TBSCertificate. [RFC 5280, 4.1]
pub(crate) const CONTEXT_3: u8 = 0xa3;

/// One element: its tag, its content, and the bytes after it.
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    pub(crate) content: &'a [u8],
    pub(crate) rest: &'a [u8],
}

/// Reads the first element of `input`; `None` if it is not DER: the length is indefinite, not minimal or beyond
/// the input, or the tag has several bytes (X.509 has no such tags).
pub(crate) fn read_element(input: &[u8]) -> Option<Element<'_>> {
    let (&tag, input) = input.split_first()?;
    if tag & 0x1f == 0x1f {
        return None;
    }
    let (&first, input) = input.split_first()?;
    let (len, input) = match first {
        0..=0x7f => (usize::from(first), input),
        0x81..=0x84 => {
            let (bytes, input) = input.split_at_checked(usize::from(first & 0x7f))?;
            let len = bytes
                .iter()
                .fold(0, |len, &byte| len << 8 | u32::from(byte));
            // Minimal: no leading zero, and no long form for a length that fits the short form.
            if bytes.first() == Some(&0) || len < 0x80 {
                return None;
            }
            (usize::try_from(len).ok()?, input)
        }
        _ => return None,
    };
    let (content, rest) = input.split_at_checked(len)?;
    Some(Element { tag, content, rest })
}

/// The content of the only element in `input`, if it has `tag` and no bytes follow it.
pub(crate) fn read_single(input: &[u8], tag: u8) -> Option<&[u8]> {
    let element = read_element(input)?;
    (element.tag == tag && element.rest.is_empty()).then_some(element.content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_der_is_read() {
        assert_eq!(read_single(&[4, 2, 7, 8], OCTET_STRING), Some(&[7, 8][..]));
        assert_eq!(read_single(&[4, 0], OCTET_STRING), Some(&[][..]));
        let mut long = vec![4, 0x81, 0x80];
        long.extend([9; 0x80]);
        assert_eq!(
            read_single(&long, OCTET_STRING).map(<[u8]>::len),
            Some(0x80)
        );
        for (wrong, why) in [
            (&[][..], "nothing"),
            (&[4], "no length"),
            (&[4, 3, 1, 2], "cut"),
            (&[4, 1, 1, 2], "bytes after it"),
            (&[3, 1, 1], "another tag"),
            (&[4, 0x80, 0, 0], "indefinite"),
            (&[4, 0x81, 1, 9], "long form of a short length"),
            (&[4, 0x82, 0, 1, 9], "leading zero"),
            (&[4, 0x84, 0xff, 0xff, 0xff, 0xff], "4 GiB"),
            (&[4, 0x85, 0, 0, 0, 0, 1, 9], "five length bytes"),
            (&[0x1f, 0x24, 1, 9], "a tag of two bytes"),
        ] {
            assert_eq!(read_single(wrong, OCTET_STRING), None, "{why}");
        }
    }
}
