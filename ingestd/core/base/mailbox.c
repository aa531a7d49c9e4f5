/* SPDX-License-Identifier: Apache-2.0
 *
 * The two queues of mailbox.h.
 */
#include "base/mailbox.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

int mailbox_open(struct mailbox *m, struct fault *fault) {
    m->command_fd = m->event_fd = -1;
    pthread_mutex_init(&m->lock, NULL);
    m->command_fd = eventfd(0, EFD_CLOEXEC);
    m->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (m->command_fd < 0 || m->event_fd < 0)
        return fault_set(fault, errno, "eventfd", "worker's mailbox");
    return 0;
}

void mailbox_close(struct mailbox *m) {
    if (m->command_fd >= 0)
        close(m->command_fd);
    if (m->event_fd >= 0)
        close(m->event_fd);
    m->command_fd = m->event_fd = -1;
    pthread_mutex_destroy(&m->lock);
}

int mailbox_wake_worker(struct mailbox *m) {
    uint64_t one = 1;
    return write(m->command_fd, &one, sizeof one) == sizeof one ? 0 : -errno;
}

int mailbox_post(struct mailbox *m, struct command c) {
    pthread_mutex_lock(&m->lock);
    bool grant = c.kind == COMMAND_GRANT_SEGMENT;
    bool room = m->command_tail - m->command_head < COMMANDS_MAX;
    bool wanted = !grant || m->grants_wanted > 0;
    if (room && wanted) {
        m->commands[m->command_tail++ % COMMANDS_MAX] = c;
        m->grants_wanted -= grant;
    }
    pthread_mutex_unlock(&m->lock);
    if (!room || !wanted)
        return room ? -EINVAL : -EAGAIN;
    return mailbox_wake_worker(m);
}

uint32_t mailbox_grants_wanted(struct mailbox *m) {
    pthread_mutex_lock(&m->lock);
    uint32_t wanted = m->grants_wanted;
    pthread_mutex_unlock(&m->lock);
    return wanted;
}

static void mailbox_signal_reader(struct mailbox *m) {
    uint64_t one = 1;
    /* A full counter (EAGAIN) means that the reader has been woken already. */
    ssize_t n = write(m->event_fd, &one, sizeof one);
    (void)n;
}

void mailbox_want_grant(struct mailbox *m) {
    pthread_mutex_lock(&m->lock);
    m->grants_wanted++;
    pthread_mutex_unlock(&m->lock);
    mailbox_signal_reader(m);
}

bool mailbox_take(struct mailbox *m, struct command *out) {
    pthread_mutex_lock(&m->lock);
    bool some = m->command_head != m->command_tail;
    if (some)
        *out = m->commands[m->command_head++ % COMMANDS_MAX];
    pthread_mutex_unlock(&m->lock);
    return some;
}

struct event *mailbox_event(struct mailbox *m) {
    uint32_t head = __atomic_load_n(&m->event_head, __ATOMIC_ACQUIRE);
    if (m->event_tail - head >= EVENTS_MAX)
        return NULL;
    struct event *e = &m->events[m->event_tail % EVENTS_MAX];
    memset(e, 0, sizeof *e);
    e->listener_index = -1;
    return e;
}

void mailbox_publish(struct mailbox *m, bool quiet) {
    uint32_t unread = m->event_tail - __atomic_load_n(&m->event_head, __ATOMIC_RELAXED);
    m->event_pending = m->event_pending || !quiet || unread >= EVENTS_MAX / 2;
    __atomic_store_n(&m->event_tail, m->event_tail + 1, __ATOMIC_RELEASE);
}

uint64_t mailbox_wake_reader(struct mailbox *m, uint64_t now_ns) {
    if (!m->event_pending)
        return UINT64_MAX;
    if (now_ns - m->woken_ns < WAKE_INTERVAL_NS)
        return m->woken_ns + WAKE_INTERVAL_NS;
    m->event_pending = false;
    m->woken_ns = now_ns;
    mailbox_signal_reader(m);
    return UINT64_MAX;
}

bool mailbox_read(struct mailbox *m, struct event *out) {
    uint32_t tail = __atomic_load_n(&m->event_tail, __ATOMIC_ACQUIRE);
    if (m->event_head == tail)
        return false;
    *out = m->events[m->event_head % EVENTS_MAX];
    __atomic_store_n(&m->event_head, m->event_head + 1, __ATOMIC_RELEASE);
    return true;
}
