"""What PyPI's etcd3gw does over the JSON gateway, against the first endpoint in $ENDPOINTS; a CA in $CA makes it TLS.

`name:password` in $LOGIN says who does it: nobody, where there are no users yet, `root`, or one who may less."""

import base64
import os

import etcd3gw
import requests

DEADLINE_SECONDS = 30

# They would take the place of the authority that is given.
for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
    os.environ.pop(variable, None)

host, port = os.environ["ENDPOINTS"].split(",")[0].rsplit(":", 1)


def connect(session=None):
    secure = {"protocol": "https", "ca_cert": os.environ["CA"]} if "CA" in os.environ else {}
    if session and secure:
        session.verify = secure["ca_cert"]
    return etcd3gw.client(host=host, port=int(port), timeout=DEADLINE_SECONDS, session=session, **secure)


nobody = connect()
name, _, password = os.environ.get("LOGIN", "").partition(":")


def call(path, by=None, **body):
    by = by or client
    return by.post(by.get_url(path), json=body)


def login(name, password):
    session = requests.Session()
    token = call("/auth/authenticate", nobody, name=name, password=password)["token"]
    session.headers["Authorization"] = token
    return connect(session)


client = login(name, password) if name else nobody


def b64(text):
    return base64.b64encode(text.encode()).decode()


def refused(call, *arguments, why="", **named):
    try:
        call(*arguments, **named)
    except Exception as error:
        text = getattr(error, "detail_text", None) or str(error)
        assert why in text, text
        return
    raise AssertionError(f"{call} was not refused")


def keys():
    client.delete_prefix("g")
    assert client.put("g", "v") and client.get("g") == [b"v"]
    [(value, meta)] = client.get("g", metadata=True)
    assert value == b"v" and meta["key"] == b"g" and int(meta["version"]) >= 1
    assert client.create("g", "x") is False
    assert client.replace("g", "v", "w") and not client.replace("g", "v", "x")
    assert client.put("g2", "") and client.get("g2") == [b""]
    assert [meta["key"] for _, meta in client.get_prefix("g", sort_order="descend", sort_target="key")] == [b"g2", b"g"]
    if name != "few":
        assert (b"w", b"g") in [(value, meta["key"]) for value, meta in client.get_all()]
    assert client.get("g", limit=1, serializable=True, keys_only=True) == [b""]
    assert client.delete("g") and not client.delete("g")
    assert client.delete_prefix("g") and client.get_prefix("g") == []
    refused(client.get, "")


def leases():
    lease = client.lease(ttl=60)
    assert client.put("leased", "v", lease)
    assert lease.keys() == [b"leased"]
    assert 0 < lease.ttl() <= 60 and lease.refresh() == 60
    assert lease.revoke() and client.get("leased") == []


def locks():
    lock = client.lock(id="gateway", ttl=60)
    assert lock.acquire() and lock.is_acquired()
    assert not client.lock(id="gateway", ttl=60).acquire()
    assert lock.refresh() == 60 and lock.release() and not lock.is_acquired()
    with client.lock(id="gateway", ttl=60) as lock:
        assert lock.is_acquired()


def watches():
    events, cancel = client.watch_prefix("w/")
    client.put("w/1", "a")
    client.delete("w/1")
    put, delete = next(events), next(events)
    assert (put["kv"]["key"], put["kv"]["value"]) == (b"w/1", b"a") and delete["type"] == "DELETE"
    cancel()
    refused(client.watch_once, "w/nobody", 0.5)


def transactions():
    put = {"request_put": {"key": b64("gt"), "value": b64("1")}}
    get = {"request_range": {"key": b64("gt")}}
    absent = {"compare": [{"key": b64("gt"), "target": "CREATE", "result": "EQUAL", "create_revision": 0}]}
    done = client.transaction({**absent, "success": [put], "failure": [get]})
    assert done["succeeded"] is True
    done = client.transaction({**absent, "success": [put], "failure": [get]})
    assert not done.get("succeeded")
    assert done["responses"][0]["response_range"]["kvs"][0]["value"] == b64("1")


def members():
    assert len(client.members()) == len(os.environ["ENDPOINTS"].split(","))
    assert client.status()["version"].startswith("3.") and client.status()["leader"] != "0"


def users():
    """Who may what; where there is no root yet, there is one in between."""
    call("/auth/role/add", name="reader")
    call("/auth/role/grant", name="reader", perm={"permType": "READ", "key": b64("gt")})
    call("/auth/user/add", name="ann", password="ann")
    call("/auth/user/grant", user="ann", role="reader")
    if not name:
        call("/auth/user/add", name="root", password="rootpw")
        call("/auth/user/grant", user="root", role="root")
        call("/auth/enable")
    root = login("root", "rootpw")
    try:
        ann = login("ann", "ann")
        assert ann.get("gt") == [b"1"]
        refused(ann.put, "gt", "2", why="permission denied")
        refused(nobody.get, "gt", why="user name is empty")
        refused(login, "ann", "wrong", why="invalid user ID or password")
        call("/auth/user/revoke", root, name="ann", role="reader")
        refused(ann.get, "gt", why="permission denied")
        assert call("/auth/user/get", ann, name="ann").get("roles", []) == []
    finally:
        if not name:
            call("/auth/disable", root)
    for user in ["ann"] if name else ["ann", "root"]:
        call("/auth/user/delete", name=user)
    call("/auth/role/delete", role="reader")


def refusals():
    denied = {"why": "permission denied"}
    for method in (client.get, client.delete, client.get_prefix, client.delete_prefix):
        refused(method, "Secret", **denied)
    refused(client.put, "Secret", "x", **denied)
    refused(client.get_all, **denied)
    put = {"request_put": {"key": b64("Secret"), "value": b64("1")}}
    refused(client.transaction, {"success": [put]}, **denied)
    refused(client.transaction, {"failure": [put]}, **denied)
    for path in ("user/list", "role/list", "disable"):
        refused(call, f"/auth/{path}", **denied)
    refused(call, "/auth/user/get", name="root", **denied)
    refused(call, "/maintenance/defragment", **denied)
    refused(call, "/cluster/member/add", peerURLs=["http://127.0.0.1:1"], **denied)
    assert call("/auth/user/get", name="few")["roles"] == ["few"]


others = {"few": refusals}
for step in (keys, leases, locks, watches, transactions, members, others.get(name, users)):
    step()
    print(f"interop: PyPI etcd3gw: {step.__name__} ok", flush=True)
