//! Addresses: `inet`, `cidr`, `macaddr`, `macaddr8`.

use std::fmt;

use tidegate_core::Result;

use super::malformed;

const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 3;

/// An `inet` or a `cidr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Inet {
    /// The address.
    pub(crate) address: std::net::IpAddr,
    /// How many bits name the network.
    pub(crate) prefix: u8,
    /// Whether it is a network (`cidr`), whose prefix is always shown.
    pub(crate) is_cidr: bool,
}

impl Inet {
    /// Reads an `inet` or a `cidr`.
    ///
    /// # Errors
    /// `stream-malformed`.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        let (address, &[_, prefix, is_cidr, _]) = match bytes {
            [head @ .., a, b, c, d] if head.len() == 4 => {
                ([*a, *b, *c, *d].into(), head.first_chunk::<4>().ok_or_else(|| malformed("inet", bytes))?)
            }
            [head @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] if head.len() == 4 => {
                let address: [u8; 16] = bytes[4..].try_into().map_err(|_| malformed("inet", bytes))?;
                (address.into(), head.first_chunk::<4>().ok_or_else(|| malformed("inet", bytes))?)
            }
            _ => return Err(malformed("inet", bytes)),
        };
        let (family, length, prefix_max) = match address {
            std::net::IpAddr::V4(_) => (FAMILY_V4, 4, 32),
            std::net::IpAddr::V6(_) => (FAMILY_V6, 16, 128),
        };
        if bytes[0] != family || bytes[3] != length || prefix > prefix_max || is_cidr > 1 {
            return Err(malformed("inet", bytes));
        }
        Ok(Self { address, prefix, is_cidr: is_cidr == 1 })
    }
}

impl fmt::Display for Inet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = match self.address {
            std::net::IpAddr::V4(address) => {
                write!(f, "{address}")?;
                32
            }
            std::net::IpAddr::V6(address) => {
                v6(f, address.segments(), address.octets())?;
                128
            }
        };
        if self.is_cidr || self.prefix != whole { write!(f, "/{}", self.prefix) } else { Ok(()) }
    }
}

/// As the server writes it, which differs from the standard library where an IPv4 address is embedded.
fn v6(f: &mut fmt::Formatter<'_>, words: [u16; 8], octets: [u8; 16]) -> fmt::Result {
    let (start, length) = longest_zeros(words);
    let end = start + length;
    for (place, word) in words.iter().enumerate() {
        if length > 0 && (start..end).contains(&place) {
            if place == start {
                f.write_str(":")?;
            }
            continue;
        }
        if place != 0 {
            f.write_str(":")?;
        }
        if place == 6 && start == 0 && (length == 6 || (length == 5 && words[5] == 0xFFFF)) {
            let [.., a, b, c, d] = octets;
            return write!(f, "{a}.{b}.{c}.{d}");
        }
        write!(f, "{word:x}")?;
    }
    if length > 0 && end == 8 { f.write_str(":") } else { Ok(()) }
}

/// The first of the longest runs of at least two zero words.
fn longest_zeros(words: [u16; 8]) -> (usize, usize) {
    let mut best = (0, 0);
    let mut place = 0;
    while place < words.len() {
        let length = words[place..].iter().take_while(|word| **word == 0).count();
        if length >= 2 && length > best.1 {
            best = (place, length);
        }
        place += length.max(1);
    }
    best
}

/// Reads a `macaddr` or a `macaddr8` as its text.
///
/// # Errors
/// `stream-malformed`.
pub(crate) fn mac(bytes: &[u8]) -> Result<String> {
    if !matches!(bytes.len(), 6 | 8) {
        return Err(malformed("macaddr", bytes));
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"))
}
