# shellcheck shell=bash
# The tour of `scripts/cluster --operations`: what docs/how-to/run-a-cluster.md tells operators to do, and a new cluster from
# a backup for `--backup`. Sourced by scripts/cluster, after cluster-tools.sh.

# configure <member> <part> <flags>: what `cluster config` writes on this member, with the settings of its sidecar.
configure() {
  local name=$1 part=$2 each members= folder=$TEESQL_DEV_FOLDER/$1 owner=()
  shift 2
  for each in $TEESQL_DEV_MEMBERS; do members+=",$each=$(address "$each"):5433"; done
  [ "$(id -u)" -ne 0 ] || owner=(--owner=postgres)
  TEESQL_GUEST_AGENT=$TEESQL_DEV_GUEST_AGENT TEESQL_CLUSTER_SECRETS=derived TEESQL_CLUSTER_NAME=dev \
    TEESQL_CLUSTER_MEMBER=$name TEESQL_CLUSTER_MEMBERS=${members#,} \
    "$TEESQL_DEV_BINARY" cluster config "$part" --dir="$folder" --data-dir="$folder/data" --etcd-dir="$folder/etcd" \
    --socket-dir="$folder" --bin-dir="$bin" --watchdog=off "${owner[@]}" "$@"
}

# lose_disk <member>
lose_disk() { rm -rf "${TEESQL_DEV_FOLDER:?}/$1/"{data,data.pgpass,etcd}; }

# etcd_is_whole: all members are in one etcd, and have started.
etcd_is_whole() {
  local name expected
  expected=$(wc -w <<<"$TEESQL_DEV_MEMBERS")
  for name in $TEESQL_DEV_MEMBERS; do
    [ "$(member exec "$name" etcdctl member list 2>/dev/null | grep -c ' started,.*http.*http')" -eq "$expected" ] &&
      member exec "$name" etcdctl endpoint health >/dev/null || return
  done
}

etcd_id() { member exec "$1" etcdctl member list | awk -F', ' -v name="$2" '$3 == name { print $1 }'; }

# restart <member>
restart() {
  shown "member stop $1"
  shown "member start $1"
  until_true 120 all_run "$(other "$1")" || unexpected "$1 does not come back"
}

rolling_restart() {
  say 'A restart of all members one by one, as for an upgrade: the standbys, a switchover, the old leader'
  local old name standby before writer
  old=$(leader)
  psql -qc 'CREATE TABLE written (id int PRIMARY KEY)'
  write_loop &
  writer=$!
  writes_go_on 20
  for name in $(others "$old"); do
    before=$(date +%s.%N)
    restart "$name"
    printf 'Longest time without an acknowledged write: %s s\n' "$(pause_since "$before")"
  done
  standby=$(synchronous_standby)
  before=$(date +%s.%N)
  switch_over "$old" "$standby"
  restart "$old"
  writes_go_on 30
  printf 'Longest time without an acknowledged write: %s s\n' "$(pause_since "$before")"
  touch "$work/stop"
  wait "$writer"
  all_written
}

remove_and_add() {
  local leads gone lines
  leads=$(leader)
  gone=$(others "$leads" | tail -1)
  say "Removing $gone"
  shown "member stop $gone"
  expect 'removed from cluster' "member exec $leads etcdctl member remove $(etcd_id "$leads" "$gone")"
  absent() { ! member exec "$leads" patronictl list -f tsv | cut -f2 | grep -qx "$gone"; }
  until_true 60 absent || unexpected "Patroni still lists $gone"
  expect Leader "member exec $leads patronictl list"

  say "Adding $gone, on a new machine"
  lose_disk "$gone"
  lines=$(log_length "$gone" etcd)
  shown "member start $gone"
  until_true 120 streams "$gone" || unexpected "$gone does not join"
  until_true 30 etcd_is_whole || unexpected 'etcd lacks a member'
  expect 'joining the etcd of the other members' "log_since $gone etcd $lines '^etcd.sh'"
  expect "$gone" "member exec $leads etcdctl member list"

  say "The disk of $gone is lost"
  shown "member kill $gone"
  lose_disk "$gone"
  lines=$(log_length "$gone" etcd)
  shown "member start $gone"
  until_true 120 streams "$gone" || unexpected "$gone does not join"
  until_true 30 etcd_is_whole || unexpected 'etcd lacks a member'
  expect 'the data is lost' "log_since $gone etcd $lines '^etcd.sh'"
}

# leads_alone <member>
leads_alone() {
  member exec "$1" patronictl list -f tsv 2>/dev/null | awk -F'\t' '$4 == "Leader" { print $2 }' | grep -qx "$1"
}

lost_majority() {
  local leads survivor lost lines
  leads=$(leader)
  survivor=$(with_role Replica)
  lost=$(others "$survivor")
  say 'A member that is to recover a majority does nothing while there is one'
  expect etcd.env "configure $survivor etcd --recover=$survivor"
  lines=$(log_length "$survivor" etcd)
  restart "$survivor"
  expect 'nothing to recover' "log_since $survivor etcd $lines '^etcd.sh'"

  say "The majority is lost: only $survivor is left, which was not synchronous"
  [ "$(with_role Replica)" = "$survivor" ] || unexpected "$survivor is synchronous"
  expect 'INSERT 0 1' "psql -c 'INSERT INTO written VALUES (-1)'"
  until_true 30 equals 1 at "$survivor" 'SELECT count(*) FROM public.written WHERE id = -1' || unexpected "$survivor does not follow"
  for name in $lost; do shown "member kill $name"; done
  sleep 30
  ! leads_alone "$survivor" || unexpected "$survivor leads without a majority"
  expect 1 "at $survivor 'SELECT count(*) FROM public.written WHERE id = -1'"

  say "$survivor goes on alone"
  lines=$(log_length "$survivor" etcd)
  shown "member stop $survivor"
  shown "member start $survivor"
  until_true 90 leads_alone "$survivor" || unexpected "$survivor does not lead"
  expect 'recovering' "log_since $survivor etcd $lines '^etcd.sh'"
  until_true 60 equals 'INSERT 0 1' psql -c 'INSERT INTO written VALUES (-2)' || unexpected 'no write is acknowledged'

  say 'The others come back with new disks'
  for name in $lost; do
    lose_disk "$name"
    configure "$name" etcd --recover="$survivor" >/dev/null
    shown "member start $name"
  done
  for name in $lost; do until_true 180 streams "$name" || unexpected "$name does not join"; done
  until_true 30 etcd_is_whole || unexpected 'etcd lacks a member'
  expect Leader "member exec $survivor patronictl list"
  lines=$(log_length "$survivor" etcd)
  restart "$survivor"
  ! log_since "$survivor" etcd "$lines" '^etcd.sh' || unexpected 'it recovers a second time'
  expect 2 "psql -Atc 'SELECT count(*) FROM written WHERE id < 0'"
}

tour_operations() {
  work=$TEESQL_DEV_FOLDER/tour
  mkdir "$work"
  : >"$work/acknowledged"
  until_true 90 all_run a || unexpected 'not all members run'
  bin=$(member exec a sed -n 's/^ *bin_dir: //p' patroni.yml)
  expect Leader 'member exec a patronictl list'
  rolling_restart
  remove_and_add
  lost_majority
  finish
}

# restore_cluster: a new cluster from the backup that the tour of --backup has made.
restore_cluster() {
  say 'A new cluster from the backup and the archive, which archives into a repository of its own'
  local name repository=$TEESQL_DEV_FOLDER/repository
  for name in $TEESQL_DEV_MEMBERS; do shown "member kill $name"; done
  mkdir "$repository"
  [ "$(id -u)" -ne 0 ] || chown postgres: "$repository"
  for name in $TEESQL_DEV_MEMBERS; do
    lose_disk "$name"
    expect patroni.yml "configure $name all --backup-repository=$repository --restore-repository=$TEESQL_DEV_FOLDER/backups --restore=latest --backup-option=log-path=$TEESQL_DEV_FOLDER/$name --backup-option=lock-path=$TEESQL_DEV_FOLDER/$name"
  done
  for name in $TEESQL_DEV_MEMBERS; do shown "member start $name"; done
  until_true 180 all_run a || unexpected 'not all members run'
  expect Leader 'member exec a patronictl list'
  expect 2 "psql -Atc 'SELECT count(*) FROM kept'"
  expect 'completed successfully' "member exec $(leader) pgbackrest --log-level-console=info check"
}
