//! Pieces of what is larger than a packet: a head, one line of JSON, and bytes behind it.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest head, in bytes.
const MAX_HEAD_BYTES: usize = 512;

/// A head and bytes, as they are published.
pub fn encode(head: &impl Serialize, bytes: &[u8]) -> Vec<u8> {
    let mut piece = serde_json::to_vec(head).expect("heads are plain structs");
    piece.push(b'\n');
    piece.extend_from_slice(bytes);
    piece
}

/// The head and the bytes of a piece; `None` if it is none.
pub fn decode<T: DeserializeOwned>(piece: &[u8]) -> Option<(T, &[u8])> {
    let end = piece.iter().take(MAX_HEAD_BYTES).position(|byte| *byte == b'\n')?;
    let head = serde_json::from_slice(&piece[..end]).ok()?;
    Some((head, &piece[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pointer::Chunk;

    #[test]
    fn reads_what_it_writes_and_nothing_else() {
        let head = Chunk { digest: "ab".into(), offset: 7 };
        let piece = encode(&head, b"\nbytes\0");
        assert_eq!(decode::<Chunk>(&piece), Some((head, &b"\nbytes\0"[..])));
        for bad in [&b""[..], b"{}", b"{}\n", b"\xff\n", &[b' '; 2000]] {
            assert_eq!(decode::<Chunk>(bad), None);
        }
    }
}
