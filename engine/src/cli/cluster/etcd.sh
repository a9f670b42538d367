#!/bin/sh
# Starts etcd of this member. etcd.env, beside this file, says who it is.
#
# With data, etcd goes on with the members that it knows. Without, it joins the etcd of the other members, or founds one
# together with them. A member whose disk was lost joins again under its name: etcd would take it for the one that it knew,
# which has data and a vote in elections, so it is removed first.
set -eu
folder=$(dirname "$0")
set -a
. "$folder/etcd.env"
set +a
# Versions before 3.4 need it.
export ETCDCTL_API=3
data=$ETCD_DATA_DIR/member
recovered=$data/recovered
# Seconds in which a founder waits for an answer of the others. A sidecar that starts may need most of it for its links: for
# a certificate from the guest agent, and for collateral.
wait=${TEESQL_ETCD_WAIT:-30}

say() { printf 'etcd.sh: %s\n' "$*" >&2; }

# ctl <endpoint> <command>: etcdctl, without what an etcd that does not run makes it print.
ctl() {
  endpoint=$1
  shift
  etcdctl --endpoints="$endpoint" --dial-timeout=2s --command-timeout=5s "$@" 2>/dev/null
}

# any <command>: runs it at the other members, one after the other, until it works at one.
any() {
  for other in $TEESQL_ETCD_OTHERS; do
    ctl "$other" "$@" && return
  done
  return 1
}

# members: those of the first etcd that runs, a line of JSON for each. It answers without a majority, as etcdctl does not.
members() {
  for other in $TEESQL_ETCD_PEERS; do
    curl -fs --noproxy '*' --connect-timeout 2 --max-time 5 "$other/members" | sed 's/},{/}\n{/g' | grep peerURLs && return
  done
  return 1
}

# Gets this member's place in the etcd of the others, and sets etcd's variables.
join() {
  case $own in
    *clientURLs*)
      id=$(any member list | awk -F', ' -v peer="$peer" '$4 == peer { print $1 }')
      [ -n "$id" ] || return
      any member remove "$id" >&2 || return
      say "the data is lost: $ETCD_NAME is a new member"
      any member add "$ETCD_NAME" --peer-urls="$peer" >&2 || return
      ;;
    '') any member add "$ETCD_NAME" --peer-urls="$peer" >&2 || return ;;
  esac
  # etcd compares the addresses with those of the others. Of the names only its own matters.
  ETCD_INITIAL_CLUSTER=$ETCD_NAME=$peer$(printf '%s\n' "$list" | sed -n 's/.*"peerURLs":\["\([^"]*\)".*/\1/p' |
    awk -v own="$peer" '$0 != own { printf ",other%d=%s", NR, $0 }')
  ETCD_INITIAL_CLUSTER_STATE=existing
  say "joining the etcd of the other members: $ETCD_INITIAL_CLUSTER"
}

# Joins the etcd of the other members, or founds one.
found_or_join() {
  peer=$ETCD_INITIAL_ADVERTISE_PEER_URLS
  deadline=$(($(date +%s) + wait))
  while :; do
    if list=$(members); then
      own=$(printf '%s\n' "$list" | grep -F "\"$peer\"" || :)
      # A founder has its name before it has started; a member that was added has none.
      case $own in
        *clientURLs*) ;;
        *'"name"'*)
          say 'founding an etcd with the other members'
          return
          ;;
      esac
      if join; then return; fi
    # A member that is not a founder waits for those.
    elif [ "$ETCD_INITIAL_CLUSTER_STATE" = new ] && [ "$(date +%s)" -ge "$deadline" ]; then
      say 'no other member has an etcd: founding one'
      return
    fi
    sleep 1
  done
}

# Makes this member's data an etcd of one member, and lets Patroni's member of it lead whether or not it was synchronous.
recover() {
  if any endpoint health >/dev/null; then
    say 'the other members have an etcd that works: nothing to recover'
    return
  fi
  say 'recovering: the other members are forgotten'
  etcd --force-new-cluster &
  process=$!
  trap 'kill "$process"' EXIT
  until ctl "$ETCD_LISTEN_CLIENT_URLS" endpoint health >/dev/null; do
    kill -0 "$process" || exit 1
    sleep 1
  done
  ctl "$ETCD_LISTEN_CLIENT_URLS" del "/service/$ETCD_INITIAL_CLUSTER_TOKEN/sync" >/dev/null
  trap - EXIT
  kill "$process"
  wait "$process" || :
  : >"$recovered"
}

if [ ! -d "$data" ]; then
  found_or_join
elif [ "$TEESQL_ETCD_RECOVER" != "$ETCD_NAME" ]; then
  rm -f "$recovered"
elif [ ! -e "$recovered" ]; then
  recover
fi
exec etcd
