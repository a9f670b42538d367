//! Detects an Intel TDX guest.

use std::path::Path;

/// Whether the machine with this root directory is a TDX guest: Linux shows the guest driver's device, and the CPU flag
/// also where a container has no devices. systemd's `PrivateDevices` and `ProcSubset=pid` hide both, but not the device in
/// sysfs.
pub(super) fn is_tdx_guest(root: &Path) -> bool {
    let has_device = || root.join("dev/tdx_guest").exists();
    let has_driver = || root.join("sys/class/misc/tdx_guest").exists();
    let has_flag = || {
        let info = std::fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
        let flags = info.lines().find(|line| line.starts_with("flags"));
        flags.is_some_and(|line| line.split_whitespace().any(|flag| flag == "tdx_guest"))
    };
    has_device() || has_driver() || has_flag()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn recognizes_the_device_the_driver_and_the_cpu_flag() {
        let root = tempfile::tempdir().unwrap();
        assert!(!is_tdx_guest(root.path()));
        fs::create_dir(root.path().join("proc")).unwrap();
        let write = |flags| {
            let text =
                format!("processor\t: 0\nmodel name\t: tdx_guest\nflags\t\t: fpu {flags} sse\n");
            fs::write(root.path().join("proc/cpuinfo"), text).unwrap();
        };
        write("tdx_guests");
        assert!(!is_tdx_guest(root.path()));
        write("tdx_guest");
        assert!(is_tdx_guest(root.path()));
        write("");
        assert!(!is_tdx_guest(root.path()));
        let driver = root.path().join("sys/class/misc/tdx_guest");
        fs::create_dir_all(&driver).unwrap();
        assert!(is_tdx_guest(root.path()));
        fs::remove_dir(driver).unwrap();
        assert!(!is_tdx_guest(root.path()));
        fs::create_dir(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev/tdx_guest"), "").unwrap();
        assert!(is_tdx_guest(root.path()));
    }
}
