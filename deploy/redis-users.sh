#!/bin/sh
# Prints the users of Redis, for both stacks: exactly one for each kind of process that connects.
# Argument: the path of the queue contract. Passwords come from the environment.
#
#   scheduler   sends tasks to the queues and reads their results
#   worker      takes tasks, keeps them while they run, writes results
#   flower      watches: reads queue lengths, receives events, asks workers and reads their answers
#   housekeeper asks workers and reads their answers
#
# kombu's keys: the queues, _kombu.* (the queues bound to each exchange, and until when), unacked*
# (messages that a worker has taken), *pidbox (questions to workers), celeryev* (events). Celery's keys:
# celery-task-meta-* (results). Flower has no right to bind a queue to an exchange that carries tasks.
set -eu
sha256() { printf '%s' "$1" | sha256sum | cut -d' ' -f1; }

queues=
lengths=
for queue in $(sed -n 's/^\[queues\.\(.*\)\]$/\1/p' "$1"); do
    # A queue's list, and the lists of its lower priorities.
    queues="$queues ~$queue ~$queue??[369]"
    lengths="$lengths %R~$queue %R~$queue??[369]"  # Flower may read only lengths: messages contain tokens
done
channels='&/0.celery.pidbox &/0.celeryev/*'
talk="~_kombu.* ~*.pidbox* ~celeryev.* $channels &/0.celeryev/worker.*"
ask='~*.reply.celery.pidbox* &/0.celery.pidbox ~_kombu.binding_deadlines'
for exchange in reply.celery.pidbox celery.pidbox celeryev; do  # kombu sweeps overdue bindings of all
    ask="$ask ~_kombu.binding.$exchange %R~_kombu.binding_permanent.$exchange"
done
look="$ask ~celeryev.* $channels"
commands='+@all -@admin -@dangerous +info -scan -randomkey -function'

# Nobody can log in as the default user, but Redis replays its file of changes as this user when it
# starts. Without rights, it would drop every transaction of the file (Redis 7.0.15, 8.2.3).
cat <<END
user default off ~* &* +@all
user scheduler on #$(sha256 "$REDIS_SCHEDULER_PASSWORD") $talk $queues ~unacked* %R~fleet.lease.* ~celery-task-meta-* &celery-task-meta-* $commands
user worker on #$(sha256 "$REDIS_WORKER_PASSWORD") $talk $queues ~unacked* ~fleet.lease.* ~celery-task-meta-* &celery-task-meta-* $commands
user housekeeper on #$(sha256 "$REDIS_HOUSEKEEPER_PASSWORD") $ask ~housekeeper.unacked* $commands
user flower on #$(sha256 "$REDIS_FLOWER_PASSWORD") $look ~flower.unacked* $commands (+llen $lengths)
END
