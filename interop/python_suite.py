"""What PyPI's etcd3 does, against the first endpoint in $ENDPOINTS; a CA in $CA makes it TLS.

`name:password` in $LOGIN says who does it: nobody, where there are no users, `root`, or one who may less."""

import os
import queue

import etcd3

DEADLINE_SECONDS = 30

host, port = os.environ["ENDPOINTS"].split(",")[0].rsplit(":", 1)
name, _, password = os.environ.get("LOGIN", "").partition(":")
if name and "CA" not in os.environ:
    print("interop: PyPI etcd3: not with users, whose tokens it sends with TLS only")
    raise SystemExit


def connect(user=name, password=password):
    login = {"user": user, "password": password} if user else {}
    return etcd3.client(host=host, port=int(port), ca_cert=os.environ.get("CA"), timeout=DEADLINE_SECONDS, **login)


client = connect()


def refused(call, *arguments, why="permission denied", **named):
    try:
        for _ in call(*arguments, **named) or ():
            pass
    except Exception as error:
        assert why in str(error), error
        return
    raise AssertionError(f"{call} was not refused")


def keys():
    client.put("k", "v")
    value, meta = client.get("k")
    assert value == b"v" and meta.version >= 1
    assert client.replace("k", "v", "w") and not client.replace("k", "v", "x")
    assert client.put_if_not_exists("k", "x") is False
    client.put("k2", "v")
    assert [meta.key for _, meta in client.get_prefix("k", sort_order="descend")] == [b"k2", b"k"]
    assert client.delete("k") and not client.delete("k")
    client.delete_prefix("k")


def leases():
    lease = client.lease(30)
    client.put("leased", "v", lease)
    assert list(lease.keys) == [b"leased"]
    lease.refresh()
    assert 0 < lease.remaining_ttl <= 30
    lease.revoke()
    assert client.get("leased")[0] is None


def watches():
    seen = queue.Queue()
    watch_id = client.add_watch_prefix_callback("w/", lambda response: [seen.put(e) for e in response.events])
    client.put("w/1", "a")
    client.delete("w/1")
    put = seen.get(timeout=DEADLINE_SECONDS)
    delete = seen.get(timeout=DEADLINE_SECONDS)
    assert put.value == b"a" and isinstance(delete, etcd3.events.DeleteEvent)
    client.cancel_watch(watch_id)


def locks():
    with client.lock("lock", ttl=30) as lock:
        assert lock.is_acquired()
    assert not lock.is_acquired()


def transactions():
    tx = client.transactions
    client.put("t", "1")
    compare = [tx.value("t") == "1", tx.version("t") > 0, tx.create("absent") == 0]
    done, _ = client.transaction(compare=compare, success=[tx.put("t", "2"), tx.get("t")], failure=[])
    assert done
    done, [[(value, _)]] = client.transaction(compare=[tx.value("t") == "1"], success=[], failure=[tx.get("t")])
    assert not done and value == b"2"


def maintenance():
    status = client.status()
    assert status.leader is not None and status.version
    assert len(list(client.members)) == len(os.environ["ENDPOINTS"].split(","))
    client.defragment()
    if name:
        # It sends no token with this one.
        refused(client.hash, why="user name is empty")
    else:
        assert client.hash() != 0
    assert list(client.list_alarms()) == []


def refusals():
    for call in (client.get, client.delete, client.get_prefix):
        refused(call, "Secret")
    refused(client.put, "Secret", "x")
    refused(client.get_all)
    refused(client.get_range, "s", "\x7f")
    tx = client.transactions
    refused(client.transaction, compare=[tx.version("Secret") == 0], success=[], failure=[])
    refused(client.transaction, compare=[], success=[], failure=[tx.delete("Secret")])
    refused(client.add_member, ["http://127.0.0.1:1"])
    refused(client.defragment)
    refused(connect, name, "wrong", why="invalid user ID or password")
    refused(connect(None).get, "k", why="user name is empty")


others = {"root": [maintenance], "": [maintenance], "few": [refusals]}
for step in (keys, leases, watches, locks, transactions, *others[name]):
    step()
    print(f"interop: PyPI etcd3: {step.__name__} ok", flush=True)
