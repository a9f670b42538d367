//! Collateral on disk: round trip, damaged files, full disks, and recorded collateral.

use std::path::Path;
use std::process::Command;

use attest::collateral::{CollateralError, DiskCache, LoadError, load_file};
use attest::mock::recorded;
use dcap_qvl::verify::QuoteVerifier;

use super::{NOW, fresh, pki};

#[test]
fn saved_collateral_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let disk = DiskCache::new(folder.path().join("new"));
    assert!(disk.load().unwrap().is_empty());
    let old = fresh(NOW - 1);
    disk.save(&old).unwrap();
    disk.save(&fresh(NOW)).unwrap();
    let loaded = disk.load().unwrap();
    assert_eq!(loaded.len(), 1);
    assert_eq!(loaded[0].0, disk.path(old.key()));
    assert_eq!(*loaded[0].1.as_ref().unwrap(), fresh(NOW));
    assert_eq!(load_file(&loaded[0].0).unwrap(), fresh(NOW));
    let files = std::fs::read_dir(disk.folder()).unwrap().count();
    assert_eq!(files, 1, "no temporary file remains");
}

/// The temporary file's name can be guessed: a link there is replaced, and what it points to is not written.
#[test]
fn a_link_in_place_of_the_temporary_file_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let disk = DiskCache::new(folder.path());
    let good = fresh(NOW);
    let other = folder.path().join("other");
    std::fs::write(&other, "untouched").unwrap();
    let draft = disk.path(good.key());
    let draft = draft.with_extension(format!("{}.tmp", std::process::id()));
    std::os::unix::fs::symlink(&other, &draft).unwrap();
    disk.save(&good).unwrap();
    assert_eq!(std::fs::read_to_string(&other).unwrap(), "untouched");
    let saved = std::fs::symlink_metadata(disk.path(good.key())).unwrap();
    assert!(saved.is_file());
}

/// A damaged file is refused, unless the damage is in a part that is not signed.
#[test]
fn damaged_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let disk = DiskCache::new(folder.path());
    let good = fresh(NOW);
    disk.save(&good).unwrap();
    let path = disk.path(good.key());
    let bytes = std::fs::read(&path).unwrap();
    let root = pki();
    let survives = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let loaded = load_file(&path).ok()?;
        loaded.check(root.root_der(), NOW).ok().map(|()| loaded)
    };
    for length in (0..bytes.len()).step_by(97) {
        assert!(survives(&bytes[..length]).is_none(), "cut at {length}");
    }
    for at in (0..bytes.len()).step_by(31) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        if let Some(loaded) = survives(&flipped) {
            // Unsigned text, such as the second certificate of a chain, is not used for verification.
            let (a, b) = (loaded.as_qvl(), good.as_qvl());
            assert_eq!(
                (&a.tcb_info, &a.qe_identity),
                (&b.tcb_info, &b.qe_identity),
                "byte {at}"
            );
            assert_eq!(
                (&a.root_ca_crl, &a.pck_crl),
                (&b.root_ca_crl, &b.pck_crl),
                "byte {at}"
            );
        }
    }
}

#[test]
fn misnamed_and_unrelated_files_are_not_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let disk = DiskCache::new(folder.path());
    let json = fresh(NOW).to_json().unwrap();
    std::fs::write(folder.path().join("00A067110000-processor.json"), &json).unwrap();
    std::fs::write(folder.path().join("README.md"), "not collateral").unwrap();
    std::fs::write(
        folder.path().join("F07EE5010000-platform.123.tmp"),
        "a temporary file",
    )
    .unwrap();
    std::fs::create_dir(folder.path().join("F07EE5010000-platform.json")).unwrap();
    let loaded = disk.load().unwrap();
    assert_eq!(loaded.len(), 2);
    assert!(matches!(loaded[0].1, Err(LoadError::OtherKey(_))));
    assert!(
        matches!(loaded[1].1, Err(LoadError::Io(_))),
        "a directory is not a file"
    );
}

#[test]
fn oversized_file_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("F07EE5010000-platform.json");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(8 << 30)
        .unwrap();
    let error = load_file(&path).unwrap_err();
    let LoadError::Collateral(CollateralError::TooLarge { .. }) = error else {
        panic!("{error}")
    };
}

#[test]
fn old_copy_survives_a_failed_write() {
    let folder = tempfile::tempdir().unwrap();
    let disk = DiskCache::new(folder.path());
    disk.save(&fresh(NOW - 1)).unwrap();
    let path = disk.path(fresh(NOW).key());
    // A directory with the name of the temporary file makes the write fail.
    std::fs::create_dir(path.with_extension(format!("{}.tmp", std::process::id()))).unwrap();
    disk.save(&fresh(NOW)).unwrap_err();
    assert_eq!(load_file(&path).unwrap(), fresh(NOW - 1));
}

/// The file system of 16 KiB has space for one copy, but not for two.
#[test]
fn old_copy_survives_a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=16k", "tmpfs"])
        .arg(folder.path())
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        println!("skipped: old_copy_survives_a_full_disk: cannot mount a tmpfs (not root?)");
        return;
    }
    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(self.0).output();
        }
    }
    let unmount = Unmount(folder.path());
    let disk = DiskCache::new(folder.path());
    disk.save(&fresh(NOW - 1)).unwrap();
    let error = disk.save(&fresh(NOW)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    let loaded = disk.load().unwrap();
    assert_eq!(*loaded[0].1.as_ref().unwrap(), fresh(NOW - 1));
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "no temporary file remains"
    );
    drop(unmount);
}

/// 2026-11-20T09:00:00Z.
const FIXTURES_AT: u64 = 1_795_165_200;

#[test]
fn simulator_collateral_is_valid() {
    for name in ["dstack-mock-v0", "dstack-mock-v1"] {
        let Some(folder) = recorded::path(name) else {
            return;
        };
        let collateral = load_file(&folder.join("collateral.json")).unwrap();
        let pem = std::fs::read(folder.join("tdx-root-ca.pem")).unwrap();
        let root = x509_parser::pem::parse_x509_pem(&pem).unwrap().1.contents;
        collateral.check(&root, FIXTURES_AT).unwrap();
        let response = std::fs::read(folder.join("GetQuote.response.json")).unwrap();
        let response: serde_json::Value = serde_json::from_slice(&response).unwrap();
        let quote = hex::decode(response["quote"].as_str().unwrap()).unwrap();
        let verified = QuoteVerifier::new(root.clone())
            .verify(&quote, collateral.as_qvl(), FIXTURES_AT)
            .unwrap();
        assert_eq!(verified.status, "UpToDate", "{name}");
        let error = collateral.check(pki().root_der(), FIXTURES_AT).unwrap_err();
        assert_eq!(error.code(), "wrong_issuer", "{name}");
    }
}

#[test]
fn hardware_collateral_is_valid() {
    let Some(folder) = recorded::path("tdx-hardware") else {
        return;
    };
    // 2025-07-01 and 2026-03-01.
    for (name, at) in [
        ("tdx_quote", 1_751_328_000),
        ("tdx_quote_outdated", 1_772_323_200),
    ] {
        let collateral = load_file(&folder.join(format!("{name}_collateral.json"))).unwrap();
        assert!(collateral.is_valid_at(at), "{collateral:?}");
        assert_eq!(collateral.key().ca.as_str(), "platform");
        // Intel's root is the last certificate of each chain, as fetched.
        let json = std::fs::read(folder.join(format!("{name}_collateral.json"))).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let chain = json["tcb_info_issuer_chain"].as_str().unwrap();
        let root = x509_parser::pem::Pem::iter_from_buffer(chain.as_bytes())
            .last()
            .unwrap()
            .unwrap();
        collateral.check(&root.contents, at).unwrap();
        let last = collateral.expires_at() - 1;
        collateral.check(&root.contents, last).unwrap();
        let error = collateral.check(&root.contents, last + 1).unwrap_err();
        assert!(matches!(error, CollateralError::Expired { .. }), "{error}");
        let quote = std::fs::read(folder.join(name)).unwrap();
        let verify = |at| {
            dcap_qvl::verify::verify(&quote, collateral.as_qvl(), at)
                .map_err(|error| error.to_string())
        };
        for at in [at, last] {
            if name == "tdx_quote" {
                assert_eq!(verify(at).unwrap().status, "UpToDate");
            } else {
                // That platform is below every level that Intel lists.
                assert_eq!(verify(at).unwrap_err(), "No matching TCB level found");
            }
        }
    }
    let error = load_file(&folder.join("sgx_quote_collateral.json")).unwrap_err();
    assert!(
        matches!(error, LoadError::Collateral(CollateralError::NotTdx)),
        "{error}"
    );
}
