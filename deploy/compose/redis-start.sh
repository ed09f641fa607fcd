#!/bin/sh
# Starts Redis with one user for each kind of process that speaks to it, and none for anybody else.
# Passwords come by environment; what Redis reads lies in memory (/tmp is a tmpfs).
#
#   scheduler   sends tasks to the queues and reads their results
#   worker      takes tasks, keeps them while they run, writes results
#   flower      looks: reads the queues' lengths, hears events, asks workers and reads their answers
#
# Keys are kombu's: the queues, _kombu.* (which queues an exchange fills, and until when), unacked*
# (messages being worked on), *pidbox and celeryev* (questions to workers, events); and Celery's
# results. Flower may not bind a queue of its own to the tasks' exchanges.
set -eu
umask 077
sha256() { printf '%s' "$1" | sha256sum | cut -d' ' -f1; }

queues=
lengths=
for queue in $QUEUES; do
    # A queue's list, and the lists of its lower priorities.
    queues="$queues ~$queue ~$queue??[369]"
    lengths="$lengths %R~$queue %R~$queue??[369]"  # not what is in them: tasks' tokens are
done
channels='&/0.celery.pidbox &/0.celeryev/*'
talk="~_kombu.* ~*.pidbox* ~celeryev.* $channels &/0.celeryev/worker.*"
look="~*.reply.celery.pidbox* ~celeryev.* $channels ~_kombu.binding_deadlines"
for exchange in reply.celery.pidbox celery.pidbox celeryev; do
    look="$look ~_kombu.binding.$exchange %R~_kombu.binding_permanent.$exchange"
done
commands='+@all -@admin -@dangerous +info -scan -randomkey -function'

cat >/tmp/users.acl <<END
user default off
user scheduler on #$(sha256 "$REDIS_SCHEDULER_PASSWORD") $talk $queues ~unacked* ~celery-task-meta-* &celery-task-meta-* $commands
user worker on #$(sha256 "$REDIS_WORKER_PASSWORD") $talk $queues ~unacked* ~celery-task-meta-* &celery-task-meta-* $commands
user flower on #$(sha256 "$REDIS_FLOWER_PASSWORD") $look ~flower.unacked* $commands (+llen $lengths)
END
# The image's own start makes Redis listen beyond loopback; it is reached from the stack's networks
# alone. A queued task outlives a crash (AOF) and is never evicted;
# full, it refuses new ones before the container's limit would end it.
exec docker-entrypoint.sh redis-server --aclfile /tmp/users.acl --appendonly yes --save '' \
    --maxmemory 384mb --maxmemory-policy noeviction --dir /data
