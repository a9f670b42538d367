//! The leader state, with manifests in any order.

use attest::manifest::{LeaderState, LeaderUpdate, ManifestError, UnsignedManifest};

use crate::{VALID_UNTIL, address, verified};

fn change_target(draft: &mut UnsignedManifest) {
    draft.leader_url = "https://other.example".parse().unwrap();
}

fn state_at(epoch: u64) -> LeaderState {
    let mut state = LeaderState::default();
    assert!(state.leader(0).unwrap().is_none());
    let first = state.accept(verified(|draft| draft.epoch = epoch));
    assert_eq!(first, Ok(LeaderUpdate::New));
    state
}

fn target(state: &LeaderState) -> String {
    state.newest().unwrap().target().to_string()
}

#[test]
fn older_epochs_are_refused() {
    let mut state = state_at(42);
    let newer = verified(|draft| {
        draft.epoch = 43;
        change_target(draft);
    });
    assert_eq!(state.accept(newer), Ok(LeaderUpdate::New));
    for found in [0, 41, 42] {
        let older = verified(|draft| {
            draft.epoch = found;
            draft.valid_until += 86_400;
        });
        let refused = ManifestError::OldEpoch { found, held: 43 };
        assert_eq!(state.accept(older), Err(refused));
        assert_eq!(target(&state), "other.example:443");
    }
    let last = verified(|draft| draft.epoch = u64::MAX);
    assert_eq!(state.accept(last), Ok(LeaderUpdate::New));
}

#[test]
fn same_leader_may_only_be_extended() {
    let mut state = state_at(42);
    let until = |seconds: u64| verified(|draft| draft.valid_until = seconds);
    assert_eq!(state.accept(until(VALID_UNTIL)), Ok(LeaderUpdate::Same));
    assert_eq!(
        state.accept(until(VALID_UNTIL + 60)),
        Ok(LeaderUpdate::Same)
    );
    assert_eq!(
        state.accept(until(VALID_UNTIL - 60)),
        Ok(LeaderUpdate::Same)
    );
    assert_eq!(state.newest().unwrap().valid_until(), VALID_UNTIL + 60);
    // Another notation of the same target.
    let slash = verified(|draft| {
        let url = format!("{}:443/", draft.leader_url.as_str());
        draft.leader_url = url.parse().unwrap();
    });
    assert_eq!(state.accept(slash), Ok(LeaderUpdate::Same));
}

#[test]
fn two_leaders_of_one_epoch_are_refused() {
    let mut state = state_at(42);
    let before = target(&state);
    let refused = Err(ManifestError::Equivocation { epoch: 42 });
    assert_eq!(state.accept(verified(change_target)), refused);
    let instance = verified(|draft| draft.leader_instance = "ab".parse().unwrap());
    assert_eq!(state.accept(instance), refused);
    assert_eq!(target(&state), before);
    let settled = verified(|draft| {
        draft.epoch = 43;
        change_target(draft);
    });
    assert_eq!(state.accept(settled), Ok(LeaderUpdate::New));
}

#[test]
fn another_cluster_is_refused() {
    let mut state = state_at(42);
    let other = verified(|draft| {
        draft.cluster = address(1);
        draft.epoch = 99;
    });
    assert_eq!(state.accept(other), Err(ManifestError::OtherCluster));
    assert_eq!(state.newest().unwrap().epoch(), 42);
}

#[test]
fn epoch_outlives_an_expired_manifest() {
    let mut state = state_at(42);
    assert!(state.leader(VALID_UNTIL - 1).unwrap().is_some());
    assert_eq!(state.leader(VALID_UNTIL), Err(ManifestError::Expired));
    let older = verified(|draft| {
        draft.epoch = 41;
        draft.valid_until += 86_400;
    });
    assert_eq!(
        state.accept(older).unwrap_err().code(),
        "manifest_old_epoch"
    );
}
