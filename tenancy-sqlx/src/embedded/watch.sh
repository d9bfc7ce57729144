# usage: sh -c "$(cat watch.sh)" NAME FIFO POSTGRES ARGUMENT…
# Runs the server. Every holder keeps the FIFO open; when none has for two seconds (they ended, crashed or were killed), stops it.
# A line in the FIFO names a new holder, and the file FIFO.name answers it: no answer means that the server is about to stop.
# Standard input is the lock that tells that a server runs: the server and its children inherit it.
trap "" INT TERM HUP
fifo=$1
shift
rm -f "$fifo" "$fifo".*
mkfifo -m 600 "$fifo" || exit 1
exec 5<&0
"$@" &
server=$!
(
  exec 5<&-
  exec 3<>"$fifo" 4<"$fifo" 3>&-
  idle=-100 # the first holder may take its time
  while [ $idle -lt 20 ]; do
    if read -r holder <&4; then
      : >"$fifo.$holder"
      idle=0
    else
      sleep 0.1
      idle=$((idle + 1))
    fi
  done
  exec 4<&-
  kill -INT $server
  while kill -0 $server; do sleep 0.2; done
) 2>/dev/null &
watcher=$!
wait $server
kill -9 $watcher 2>/dev/null
