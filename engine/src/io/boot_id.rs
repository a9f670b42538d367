//! The boot id of this machine's kernel.

use std::fs;
use std::io;

use wire::link::BootId;

/// Where Linux shows it. [random(4)]
const PATH: &str = "/proc/sys/kernel/random/boot_id";

/// Reads the boot id, which does not change while the kernel runs.
///
/// # Errors
/// `/proc` is not mounted, or the file has no UUID.
pub(crate) fn read() -> io::Result<BootId> {
    let text = fs::read_to_string(PATH)?;
    let id = text.trim_end().parse();
    id.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{PATH}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_id_stays_the_same() {
        assert_eq!(read().unwrap(), read().unwrap());
    }
}
