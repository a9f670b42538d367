# shellcheck shell=bash
# The tour of `scripts/cluster --tools`: what users' usual tools do with a cluster. Sourced by scripts/cluster, which
# explains `expect` and the others.

# position <member>: 0 for the first one. The order gives the ports of the links.
position() { printf '%s\n' "$(($(printf '%d' "'$1") - 97))"; }
address() { printf '10.99.0.%s\n' "$(($(position "$1") + 1))"; }
postgres_port() { printf '%s\n' "$((15432 + $(position "$1")))"; }

# others <member>: all members but this one.
others() {
  local name
  for name in $TEESQL_DEV_MEMBERS; do [ "$name" = "$1" ] || printf '%s\n' "$name"; done
}
other() { others "$1" | head -1; }

# superuser <arguments of psql>: a session of postgres on the leader, through the forwarder.
superuser() { PGPASSWORD=$TEESQL_DEV_SUPERUSER_PASSWORD psql -U postgres "$@"; }
# at <member> <query>: the answer of this member's own Postgres.
at() { member exec "$1" psql -X -d postgres -Atc "$2"; }
equals() { [ "$("${@:2}" 2>/dev/null)" = "$1" ]; }

# leads_other_than <member>: another member leads, as the others see it.
leads_other_than() {
  local name
  name=$(member exec "$(other "$1")" patronictl list -f tsv 2>/dev/null | awk -F'\t' '$4 == "Leader" { print $2 }')
  [ -n "$name" ] && [ "$name" != "$1" ]
}

# streams <member>: it follows the leader. What Patroni says of it may be older than what has just happened to it.
streams() { equals t at "$1" "SELECT count(*) > 0 FROM pg_stat_wal_receiver WHERE status = 'streaming'"; }

# log_since <member> <program> <line> <pattern>: lines of its log after that line.
log_since() { tail -n "+$(($3 + 1))" "$TEESQL_DEV_FOLDER/$1/$2.log" | grep -E "$4"; }
log_length() { wc -l <"$TEESQL_DEV_FOLDER/$1/$2.log"; }

# contents <member>: a checksum of the whole database. The dump has a random key since PostgreSQL 15.14.
contents() {
  member exec "$1" sh -c "$bin/pg_dump -d postgres | grep -v -e '^.restrict' -e '^.unrestrict' | sha256sum"
}
same_contents() { [ "$(contents "$1")" = "$(contents "$2")" ]; }

# switch_over <from> <to>
switch_over() {
  expect 'Successfully switched over' "member exec $1 patronictl switchover --leader $1 --candidate $2 --force"
}

logical_wal() {
  say 'WAL has what logical replication needs'
  expect logical "superuser -Atc 'SHOW wal_level'"
}

rewind() {
  say 'pg_rewind over a link: a leader that was cut off comes back with WAL that no other member has'
  local old new lines
  old=$(leader)
  lines=$(log_length "$old" patroni)
  expect 'CREATE TABLE' "psql -c 'CREATE TABLE diverged (id int PRIMARY KEY)'"
  shown "member isolate $old"
  # No standby confirms it: only with synchronous_commit = local does it return at all.
  expect 'INSERT 0 1000' "member exec $old psql -d postgres -c 'SET synchronous_commit = local' -c 'INSERT INTO public.diverged SELECT generate_series(1, 1000)'"
  until_true 60 leads_other_than "$old" || unexpected 'no other member leads'
  new=$(member exec "$(other "$old")" patronictl list -f tsv | awk -F'\t' '$4 == "Leader" { print $2 }')
  expect 'INSERT 0 1' "psql -c 'INSERT INTO diverged VALUES (0)'"
  shown "member join $old"
  until_true 120 streams "$old" || unexpected "$old does not come back"
  expect 'user=rewind' "log_since $old patroni $lines 'running pg_rewind from|pg_rewind exit code'"
  expect 'pg_rewind: Done!' "log_since $old patroni $lines 'pg_rewind: '"
  expect 1 "at $old 'SELECT count(*) FROM public.diverged'"
  until_true 30 same_contents "$old" "$new" || unexpected "$old and $new differ"
  printf 'The contents of %s and %s are equal: %s\n' "$old" "$new" "$(contents "$old")"
}

base_backup() {
  say 'pg_basebackup over a link, with the role replicator'
  local from to
  from=$(leader)
  to=$(other "$from")
  expect 'base backup completed' "member exec $to sh -c '. ./patroni.env; PGPASSFILE=/dev/null PGPASSWORD=\$PATRONI_REPLICATION_PASSWORD exec $bin/pg_basebackup -v -h 127.0.0.1 -p $(postgres_port "$from") -U replicator -X stream -c fast -D copy'"
  expect 'backup successfully verified' "member exec $to $bin/pg_verifybackup copy"
  rm -rf "${TEESQL_DEV_FOLDER:?}/$to/copy"
}

# as_server <command>: as the user that runs Postgres, which root must not, and without the session of this tour.
as_server() {
  local clean=(env -u PGHOST -u PGPORT -u PGUSER -u PGPASSWORD -u PGDATABASE -u PGSSLMODE)
  [ "$(id -u)" -ne 0 ] || clean=(setpriv --reuid=postgres --regid=postgres --init-groups "${clean[@]}")
  "${clean[@]}" "$@"
}

subscriber() { env -u PGPASSWORD psql -h "$work/subscriber" -p 5440 -U postgres -Atc "$1"; }

start_subscriber() {
  local folder=$work/subscriber
  mkdir -m 700 "$folder"
  printf '127.0.0.1:6440:*:postgres:%s\n' "$TEESQL_DEV_SUPERUSER_PASSWORD" >"$folder/pgpass"
  chmod 600 "$folder/pgpass"
  chmod 755 "$work"
  [ "$(id -u)" -ne 0 ] || chown -R postgres: "$folder"
  as_server "$bin/initdb" -D "$folder/data" -U postgres -A trust --no-sync >"$work/initdb.log"
  as_server "$bin/pg_ctl" -D "$folder/data" -w -l "$folder/log" \
    -o "-p 5440 -c listen_addresses= -c unix_socket_directories=$folder" start >"$work/pg_ctl.log"
  TEESQL_GUEST_AGENT=$TEESQL_DEV_GUEST_AGENT "${TEESQL_DEV_BINARY%/*}/teesql-forward" \
    --target "$TEESQL_DEV_SIDECARS" --listen 127.0.0.1:6440 --drain-timeout 1s >"$work/forward.log" 2>&1 &
  forwarder=$!
}

# slots_exist: each member has the slot, and the standbys can be promoted with it.
slots_exist() {
  local name
  for name in $TEESQL_DEV_MEMBERS; do
    equals 1 at "$name" "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'orders'" || return
  done
}
slot_is_safe() { grep -q 'Logical slot orders is safe' "$TEESQL_DEV_FOLDER/$1/patroni.log"; }

# arrives <rows>: the subscriber has so many, at the latest after a minute.
arrives() {
  local since=$SECONDS
  until_true 60 equals "$1" subscriber 'SELECT count(*) FROM orders' || unexpected "expected $1 rows"
  printf 'The subscriber has %s rows, %s s later\n' "$(subscriber 'SELECT count(*) FROM orders')" "$((SECONDS - since))"
}

logical_replication() {
  say 'Logical replication to a server outside the cluster, through a forwarder'
  local old new
  start_subscriber
  expect 'INSERT 0 100' "psql -c 'CREATE TABLE orders (id int PRIMARY KEY, item text)' -c \"INSERT INTO orders SELECT id, 'first' FROM generate_series(1, 100) id\""
  expect 'CREATE PUBLICATION' "superuser -c 'CREATE PUBLICATION orders FOR TABLE public.orders'"
  say 'Patroni keeps the slot on all members. It restarts each standby once to copy it'
  old=$(leader)
  expect 'Configuration changed' "member exec $old patronictl edit-config --force -s slots.orders.type=logical -s slots.orders.database=postgres -s slots.orders.plugin=pgoutput"
  until_true 90 slots_exist || unexpected 'the slot does not exist on all members'
  subscriber 'CREATE TABLE orders (id int PRIMARY KEY, item text)' >/dev/null
  expect 'CREATE SUBSCRIPTION' "subscriber \"CREATE SUBSCRIPTION orders CONNECTION 'host=127.0.0.1 port=6440 user=postgres dbname=postgres passfile=$work/subscriber/pgpass' PUBLICATION orders WITH (create_slot = false, slot_name = orders)\""
  arrives 100
  expect 'INSERT 0 100' "psql -c \"INSERT INTO orders SELECT id, 'second' FROM generate_series(101, 200) id\""
  arrives 200

  say 'The subscription goes on after a switchover'
  until_true 90 all_run "$old" || unexpected 'not all members run'
  new=$(synchronous_standby)
  until_true 90 slot_is_safe "$new" || unexpected "the slot on $new is not safe to be used"
  log_since "$new" patroni 0 'Logical slot orders'
  switch_over "$old" "$new"
  expect 'INSERT 0 100' "psql -c \"INSERT INTO orders SELECT id, 'third' FROM generate_series(201, 300) id\""
  arrives 300

  say 'And after the leader was killed'
  until_true 90 all_run "$new" || unexpected 'not all members run'
  old=$new
  until_true 90 slots_exist || unexpected 'the slot does not exist on all members'
  new=$(synchronous_standby)
  until_true 90 slot_is_safe "$new" || unexpected 'the slot on the standby is not safe to be used'
  expect 'INSERT 0 100' "psql -c \"INSERT INTO orders SELECT id, 'fourth' FROM generate_series(301, 400) id\""
  shown "member kill $old"
  until_true 60 leads_other_than "$old" || unexpected 'no other member leads'
  expect 'INSERT 0 100' "psql -c \"INSERT INTO orders SELECT id, 'fifth' FROM generate_series(401, 500) id\""
  arrives 500
  expect "$(psql -Atc "SELECT md5(string_agg(id || item, ',' ORDER BY id)) FROM orders")" "subscriber \"SELECT md5(string_agg(id || item, ',' ORDER BY id)) FROM orders\""
  shown "member start $old"
  until_true 120 all_run "$(other "$old")" || unexpected "$old does not come back"
  stop_subscriber
}

# The slot would keep WAL for a subscriber that is gone.
stop_subscriber() {
  subscriber 'ALTER SUBSCRIPTION orders DISABLE' >/dev/null
  subscriber 'ALTER SUBSCRIPTION orders SET (slot_name = NONE)' >/dev/null
  subscriber 'DROP SUBSCRIPTION orders' >/dev/null
  as_server "$bin/pg_ctl" -D "$work/subscriber/data" -m fast -w stop >/dev/null
  kill "$forwarder"
  wait "$forwarder" || :
  expect 'Configuration changed' "member exec $(leader) patronictl edit-config --force -s slots.orders=null"
}

# session <role> <target_session_attrs> [further parameters]: how libpq connects to all hosts.
session() {
  printf '%s' "host=$hosts port=5433 user=$1 dbname=postgres sslmode=verify-full sslrootcert=$TEESQL_DEV_CA \
    sslcert=$TEESQL_DEV_CLIENT_CERT sslkey=$TEESQL_DEV_CLIENT_KEY target_session_attrs=$2 ${3:-}"
}
secret_of() {
  if [ "$1" = teesql_read ]; then printf '%s' "$TEESQL_DEV_READ_SECRET"; else printf '%s' "$TEESQL_DEV_READWRITE_SECRET"; fi
}

# landed <role> <target_session_attrs>: the host, and whether the Postgres that serves the session is a standby.
landed() {
  PGPASSWORD=$(secret_of "$1") psql -At "$(session "$1" "$2")" -c '\echo :HOST' \
    -c "SELECT CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE 'leader' END" 2>&1
}

# lands <role> <target_session_attrs> <host, or a part of the error> [standby or leader]
lands() {
  local output
  output=$(landed "$1" "$2") || :
  printf '%-17s %-15s %s\n' "$1" "$2" "$(printf '%s' "$output" | tr '\n' ' ' | sed 's/psql: error: .*failed: //')"
  [[ $output == *"$3"* ]] && [[ $output == *"${4:-}"* ]] || unexpected "expected $3 ${4:-}: $output"
}

target_session_attrs() {
  local leads first hosts counted
  leads=$(leader)
  first=$(other "$leads")
  # A standby, the leader, and the other standby.
  hosts=$(address "$first"),$(address "$leads"),$(address "$(others "$leads" | tail -1)")
  first=${hosts%%,*}
  leads=$(address "$leads")
  say "libpq with three hosts and mutual TLS: $hosts, of which $leads leads. The host, and what serves the session"
  lands teesql_readwrite any "$first" leader
  lands teesql_readwrite read-write "$first" leader
  lands teesql_readwrite primary "$first" leader
  lands teesql_readwrite read-only 'session is not read-only'
  lands teesql_readwrite standby 'server is not in hot standby mode'
  lands teesql_readwrite prefer-standby "$first" leader
  lands teesql_read any "$first" standby
  lands teesql_read read-write 'session is read-only'
  lands teesql_read primary "$leads" leader
  lands teesql_read read-only "$first" standby
  lands teesql_read standby "$first" standby
  lands teesql_read prefer-standby "$first" standby
  say '30 sessions of teesql_read with load_balance_hosts=random: any host, and standbys only'
  # Debian's libpq is older than the parameter; psycopg brings a newer one.
  random() {
    PGPASSWORD=$TEESQL_DEV_READ_SECRET "$TEESQL_TEST_PYTHON" -c 'import psycopg, sys
for _ in range(30):
    with psycopg.connect(sys.argv[1]) as connection:
        print(connection.info.host)' "$(session teesql_read "$1" load_balance_hosts=random)" | sort | uniq -c
  }
  counted=$(random any)
  printf '%s\n' "$counted"
  [ "$(wc -l <<<"$counted")" -ge 2 ] || unexpected 'all sessions are on one host'
  counted=$(random standby)
  printf '%s\n' "$counted"
  [[ $counted != *"$leads"* ]] || unexpected 'a session is on the leader'
}

# documented <language> <page>: the first block in this language of a page in docs/how-to.
documented() { awk -v begin="\`\`\`$1" '$0 == begin { on = 1; next } on && $0 == "```" { exit } on' "docs/how-to/$2"; }

# balanced <listener>: the servers that HAProxy sends clients of this listener to.
balanced() {
  curl -s 'http://127.0.0.1:7000/;csv' | awk -F, -v listener="$1" '$1 == listener && $2 != "BACKEND" && $18 == "UP" { printf "%s ", $2 }'
}
# through_haproxy <port> <role> <query>
through_haproxy() {
  PGPASSWORD=$(secret_of "$2") psql -At "host=localhost port=$1 user=$2 dbname=postgres sslmode=verify-full \
    sslrootcert=$TEESQL_DEV_CA sslcert=$TEESQL_DEV_CLIENT_CERT sslkey=$TEESQL_DEV_CLIENT_KEY" -c "$3"
}

# Writes through HAProxy, and notes the writes that were acknowledged.
haproxy_loop() {
  local id=1
  while [ ! -e "$work/stop" ]; do
    if through_haproxy 5000 teesql_readwrite "INSERT INTO balanced VALUES ($id)" >/dev/null 2>>"$work/errors"; then
      printf '%s %s\n' "$id" "$(date +%s.%N)" >>"$work/acknowledged"
    fi
    id=$((id + 1))
    sleep 0.1
  done
}

haproxy_recipe() {
  say "HAProxy with Patroni's recipe, as docs/how-to/connect-drivers.md has it"
  local old new name edit=() proxy writer before moved
  for name in $TEESQL_DEV_MEMBERS; do edit+=(-e "s/$name\\.example/$(address "$name")/"); done
  documented haproxy connect-drivers.md | sed "${edit[@]}" >"$work/haproxy.cfg"
  expect 'Configuration file is valid' "haproxy -c -V -f $work/haproxy.cfg"
  haproxy -db -f "$work/haproxy.cfg" >"$work/haproxy.log" 2>&1 &
  proxy=$!
  old=$(leader)
  new=$(synchronous_standby)
  until_true 20 equals "$old " balanced writers || unexpected "HAProxy sends writers to $(balanced writers)"
  until_true 20 equals "$(others "$old" | tr '\n' ' ')" balanced readers || unexpected "HAProxy sends readers to $(balanced readers)"
  printf 'Writers go to %s, readers to %s\n' "$(balanced writers)" "$(balanced readers)"
  expect f "through_haproxy 5000 teesql_readwrite 'SELECT pg_is_in_recovery()'"
  expect t "through_haproxy 5001 teesql_read 'SELECT pg_is_in_recovery()'"
  psql -qc 'CREATE TABLE balanced (id int PRIMARY KEY)'
  rm -f "$work/stop"
  : >"$work/acknowledged"
  : >"$work/errors"
  haproxy_loop &
  writer=$!
  writes_go_on 20
  before=$(date +%s.%N)
  switch_over "$old" "$new"
  writes_go_on 30
  until_true 60 equals "$new " balanced writers || unexpected "HAProxy sends writers to $(balanced writers)"
  moved=$(date +%s.%N)
  sleep 3
  touch "$work/stop"
  wait "$writer"
  printf 'Writers go to %s, %.0f s after the switchover began. Longest time without an acknowledged write: %s s\n' \
    "$(balanced writers)" "$(echo "$moved $before" | awk '{ print $1 - $2 }')" "$(pause_since "$before")"
  sort <"$work/errors" | uniq -c | cut -c -200
  kill "$proxy"
  wait "$proxy" 2>/dev/null || :
}

start_prometheus() {
  local name targets="'10.99.0.254:8080'"
  for name in $TEESQL_DEV_MEMBERS; do targets+=", '$(address "$name"):8080'"; done
  cat >"$work/prometheus.yml" <<END
global: { scrape_interval: 2s, evaluation_interval: 5s }
rule_files: ['$PWD/docs/grafana/alerts.yaml']
scrape_configs:
  - job_name: teesql
    static_configs: [{ targets: [$targets] }]
END
  expect SUCCESS "promtool check rules docs/grafana/alerts.yaml"
  expect SUCCESS "promtool check config $work/prometheus.yml"
  prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/prometheus" \
    --web.listen-address=127.0.0.1:9095 >"$work/prometheus.log" 2>&1 &
  prometheus=$!
}

# What the dashboard shows only after it has happened.
mishaps() {
  local leads standby
  say 'A wrong secret, a statement that is cancelled, a report'
  PGPASSWORD=wrong psql -U teesql_read -c '' 2>&1 | cut -c -200 || :
  timeout -s INT 2 psql -c 'SELECT pg_sleep(60)' 2>&1 || :
  curl -s "http://$(address a):8080/attestation" | cut -c -60

  say "A standby's Postgres is down while a client logs in there"
  until_true 60 all_run a || unexpected 'not all members run'
  leads=$(leader)
  standby=$(other "$leads")
  hosts=$(address "$standby")
  shown "member exec $standby $bin/pg_ctl -D data -m immediate stop" | tail -1
  landed teesql_read any | cut -c -200 || :

  say 'Patroni of the leader hangs: its sidecar fences it'
  shown "member exec $leads pkill -STOP -f /patroni.patroni.yml"
  fenced() { curl -s "http://$(address "$leads"):8080/cluster" | grep -q '"fenced": *"patroni_silent"'; }
  until_true 15 fenced || unexpected "$leads is not fenced"
  shown "member exec $leads pkill -CONT -f /patroni.patroni.yml"
  writable() { [ "$(timeout 20 psql -Atc 'SELECT 1' 2>/dev/null)" = 1 ]; }
  until_true 60 writable || unexpected 'no session that can write is served'

  say 'The first server of the forwarder is lost'
  until_true 90 all_run "$(other a)" || unexpected 'not all members run'
  shown 'member kill a'
  until_true 60 writable || unexpected 'no session that can write is served'
  shown 'member start a'
  until_true 120 streams a || unexpected 'a does not come back'
}

dashboard() {
  say 'Prometheus: the expressions of all panels and alerts have data'
  sleep 10
  expect 'every expression has data' "python3 scripts/lib/dashboard.py http://127.0.0.1:9095"
  kill "$prometheus"
  wait "$prometheus" || :
}

tour_tools() {
  work=$TEESQL_DEV_FOLDER/tour
  mkdir "$work"
  : >"$work/acknowledged"
  until_true 90 all_run a || unexpected 'not all members run'
  bin=$(member exec a sed -n 's/^ *bin_dir: //p' patroni.yml)
  start_prometheus
  expect Leader 'member exec a patronictl list'
  logical_wal
  rewind
  base_backup
  logical_replication
  target_session_attrs
  haproxy_recipe
  mishaps
  dashboard
  finish
}
