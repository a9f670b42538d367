# shellcheck shell=bash
# The tour of `scripts/cluster --applications`: applications that use the Python and the Node.js package write during a failover
# and a switchover. Sourced by scripts/cluster, which defines `expect`, `shown`, `unexpected` and the other functions.

applications=()

# application <name> <file> <command>: starts an application. The file exists once scripts/test-<name> has installed its package and
# the drivers.
application() {
  local name=$1
  if ! [ -e "$2" ]; then
    unexpected "there is no $2: run scripts/test-$name"
    return
  fi
  shift 2
  mkdir "$base/$name"
  expect 'CREATE TABLE' "psql -c 'CREATE TABLE written_$name (id int PRIMARY KEY)'"
  "$@" "$base/stop" >"$base/$name/acknowledged" 2>"$base/$name/errors" &
  printf '%s\n' "$!" >"$base/$name/pid"
  applications+=("$name")
}

# all_write <seconds> <time>: each application has a further write acknowledged within these seconds. Prints for each its longest
# time without an acknowledged write since <time>.
all_write() {
  local name
  for name in "${applications[@]}"; do
    work=$base/$name
    writes_go_on "$1"
    printf '%s: longest time without an acknowledged write: %s s\n' "$name" "$(pause_since "$2")"
  done
}

# Stops the applications, which must exit with 0, and checks that every row that was acknowledged exists.
all_end() {
  local name code
  touch "$base/stop"
  for name in "${applications[@]}"; do
    code=0
    wait "$(cat "$base/$name/pid")" || code=$?
    printf '%s ended with %s. Errors that its driver raised:\n' "$name" "$code"
    cut -c -200 "$base/$name/errors"
    [ "$code" -eq 0 ] || unexpected "$name ended with $code"
    work=$base/$name
    all_written "written_$name"
  done
}

tour_applications() {
  base=$TEESQL_DEV_FOLDER/tour
  mkdir "$base"
  until_true 90 all_run a || unexpected 'not all members run'
  say 'Two applications write, each with a forwarder in its process that knows the three members'
  local python=target/python/venv/bin/python node=target/node-test/test/failover.mjs
  application python "$python" "$python" clients/python/tests/failover.py
  application node "$node" node "$node"
  local old new standby before
  before=$(date +%s.%N)
  all_write 30 "$before"

  say 'kill -9 of everything on the leader'
  old=$(leader) before=$(date +%s.%N)
  shown "member kill $old"
  sleep 2
  all_write 60 "$before"
  new=$(leader) || new=none
  [ "$new" != none ] && [ "$new" != "$old" ] || unexpected 'no other member leads'
  shown "member start $old"
  until_true 120 all_run "$new" || unexpected "$old does not come back"

  say 'A planned switchover'
  standby=$(synchronous_standby)
  before=$(date +%s.%N)
  switch_over "$new" "$standby"
  all_write 30 "$before"
  all_end
  finish
}
