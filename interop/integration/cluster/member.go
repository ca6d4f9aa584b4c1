package integration

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/ioutil"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	client "conclave/v2client"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/embed"
	"go.etcd.io/etcd/etcdserver"
	"go.etcd.io/etcd/pkg/transport"
	"go.etcd.io/etcd/pkg/types"

	"google.golang.org/grpc"
)

type member struct {
	etcdserver.ServerConfig
	PeerTLSInfo, ClientTLSInfo *transport.TLSInfo
	DialOptions                []grpc.DialOption

	s          *server
	grpcAddr   string // where clients find it, through the bridge: empty without gRPC
	bridge     *link
	socket     string
	peers      *link
	peerListen string

	keepAliveMinTime, keepAliveInterval, keepAliveTimeout time.Duration

	clientMaxCallSendMsgSize, clientMaxCallRecvMsgSize int
	keepDataDirTerminate, isLearner                    bool
}

// memberConfig is the configuration of a member that a test makes by itself.
type memberConfig struct {
	name string
	ClusterConfig
}

func scheme(info *transport.TLSInfo) string {
	if info == nil {
		return "http"
	}
	return "https"
}

func mustURLs(t testing.TB, urls ...string) types.URLs {
	made, err := types.NewURLs(urls)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func mustNewMember(t testing.TB, cfg memberConfig) *member {
	m := &member{
		PeerTLSInfo: cfg.PeerTLS, ClientTLSInfo: cfg.ClientTLS,
		keepAliveMinTime: cfg.GRPCKeepAliveMinTime, keepAliveInterval: cfg.GRPCKeepAliveInterval, keepAliveTimeout: cfg.GRPCKeepAliveTimeout,
		clientMaxCallSendMsgSize: cfg.ClientMaxCallSendMsgSize, clientMaxCallRecvMsgSize: cfg.ClientMaxCallRecvMsgSize,
	}
	m.Name = cfg.name
	m.ClientURLs = mustURLs(t, fmt.Sprintf("%s://127.0.0.1:%d", scheme(cfg.ClientTLS), freePort()))
	m.PeerURLs = mustURLs(t, fmt.Sprintf("%s://127.0.0.1:%d", scheme(cfg.PeerTLS), freePort()))
	m.peerListen = fmt.Sprintf("%s://127.0.0.1:%d", scheme(cfg.PeerTLS), freePort())
	m.InitialPeerURLsMap = types.URLsMap{m.Name: m.PeerURLs}
	m.InitialClusterToken = "etcd"
	m.NewCluster = true
	m.ElectionTicks, m.TickMs = electionTicks, uint(tickDuration/time.Millisecond)
	m.QuotaBackendBytes = cfg.QuotaBackendBytes
	m.MaxTxnOps, m.MaxRequestBytes = cfg.MaxTxnOps, cfg.MaxRequestBytes
	if m.MaxTxnOps == 0 {
		m.MaxTxnOps = embed.DefaultMaxTxnOps
	}
	if m.MaxRequestBytes == 0 {
		m.MaxRequestBytes = embed.DefaultMaxRequestBytes
	}
	m.SnapshotCount, m.SnapshotCatchUpEntries = cfg.SnapshotCount, cfg.SnapshotCatchUpEntries
	if m.SnapshotCount == 0 {
		m.SnapshotCount = etcdserver.DefaultSnapshotCount
	}
	m.AuthToken, m.TokenTTL, m.BcryptCost = cfg.AuthToken, cfg.AuthTokenTTL, 4
	if m.AuthToken == "" {
		m.AuthToken = "simple"
	}
	m.EnableLeaseCheckpoint, m.LeaseCheckpointInterval, m.LeaseCheckpointPersist = cfg.EnableLeaseCheckpoint, cfg.LeaseCheckpointInterval, cfg.LeaseCheckpointPersist
	m.WatchProgressNotifyInterval, m.CorruptCheckTime = cfg.WatchProgressNotifyInterval, cfg.CorruptCheckTime
	m.DiscoveryURL = cfg.DiscoveryURL
	if cfg.LeaseCheckpointInterval > 0 {
		t.Skip("no server has a flag for the interval of checkpoints")
	}
	var err error
	if m.DataDir, err = ioutil.TempDir(os.TempDir(), "etcd"); err != nil {
		t.Fatal(err)
	}
	m.listenPeers(t)
	if cfg.UseGRPC {
		host := "localhost"
		if cfg.UseIP {
			host = "127.0.0.1"
		}
		m.socket = host + ":" + m.Name + "0"
		unix := "unix"
		if m.ClientTLSInfo != nil {
			unix = "unixs"
		}
		m.grpcAddr = unix + "://" + m.socket
		if err := m.listen(); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// listenPeers has a link at the address that other members know, so that the tests can cut them off.
func (m *member) listenPeers(t testing.TB) {
	listener, err := net.Listen("tcp", m.PeerURLs[0].Host)
	if err != nil {
		t.Fatal(err)
	}
	m.peers = newLink(listener, strings.SplitN(m.peerListen, "://", 2)[1], ownerOf)
}

// listen opens what stands before the server, where it was closed.
func (m *member) listen() (err error) {
	if m.socket != "" && m.bridge == nil {
		m.bridge, err = newUnixLink(m.socket, m.ClientURLs[0].Host)
	}
	return err
}

// Clone is a member of the same configuration that shares nothing with this one.
func (m *member) Clone(t testing.TB) *member {
	return &member{ServerConfig: m.ServerConfig, PeerTLSInfo: m.PeerTLSInfo, ClientTLSInfo: m.ClientTLSInfo, peerListen: m.peerListen}
}

func (m *member) Launch() (err error) {
	if err = m.listen(); err == nil {
		var s *server
		if s, err = startServer(m); s != nil {
			m.s = s
		}
	}
	return err
}

// Close ends the process, without a warning.
func (m *member) Close() {
	if m.bridge != nil {
		m.bridge.Close()
		m.bridge = nil
	}
	if m.s != nil {
		m.s.kill()
	}
}

func (m *member) Stop(t testing.TB) { m.Close() }

func (m *member) Restart(t testing.TB) error {
	if m.s != nil && !m.s.isStopped() {
		m.Close()
	}
	err := m.Launch()
	if err == errEnded {
		err = nil // the test sees it by StopNotify
	}
	return err
}

func (m *member) Terminate(t testing.TB) {
	m.Close()
	m.peers.Close()
	if !m.keepDataDirTerminate {
		if err := os.RemoveAll(m.DataDir); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *member) GRPCAddr() string             { return m.grpcAddr }
func (m *member) URL() string                  { return m.ClientURLs[0].String() }
func (m *member) ID() types.ID                 { return m.s.ID() }
func (m *member) StopNotify() <-chan struct{}  { return m.s.StopNotify() }
func (m *member) ReadyNotify() <-chan struct{} { return m.s.ReadyNotify() }
func (m *member) DropConnections()             { m.bridge.Reset() }
func (m *member) PauseConnections()            { m.bridge.pause(true) }
func (m *member) UnpauseConnections()          { m.bridge.pause(false) }
func (m *member) Blackhole()                   { m.bridge.blackhole(true) }
func (m *member) Unblackhole()                 { m.bridge.blackhole(false) }
func (m *member) ElectionTimeout() time.Duration {
	return time.Duration(m.ElectionTicks*int(m.TickMs)) * time.Millisecond
}

// Pause cuts a member off from all others, of this test or another.
func (m *member) Pause()  { m.cut(true) }
func (m *member) Resume() { m.cut(false) }

func (m *member) cut(on bool) {
	m.peers.sever(nil, on)
	for _, other := range others(m) {
		other.peers.sever(m, on)
	}
}

func others(m *member) (found []*member) {
	running.Lock()
	defer running.Unlock()
	for _, other := range running.members {
		if other != m {
			found = append(found, other)
		}
	}
	return found
}

func (m *member) InjectPartition(t testing.TB, others ...*member)  { m.part(others, true) }
func (m *member) RecoverPartition(t testing.TB, others ...*member) { m.part(others, false) }

func (m *member) part(others []*member, on bool) {
	for _, other := range others {
		m.peers.sever(other, on)
		other.peers.sever(m, on)
	}
}

func (m *member) WaitStarted(t testing.TB) {
	select {
	case <-m.s.ready:
	case <-m.s.stopped:
		t.Fatal("the server ended")
	}
}

func (m *member) WaitOK(t testing.TB) { m.WaitStarted(t) }

// Metric is the value on the first line of /metrics that begins so.
func (m *member) Metric(name string) (string, error) {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Second}
	r, err := c.Get(m.URL() + "/metrics")
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	text, err := ioutil.ReadAll(r.Body)
	for _, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(line, name) {
			return strings.Split(line, " ")[1], err
		}
	}
	return "", err
}

// checkLeaderTransition waits for another leader, and is its number.
func checkLeaderTransition(m *member, old uint64) uint64 {
	for {
		if now := m.s.Lead(); now != 0 && now != old {
			return now
		}
		time.Sleep(tickDuration)
	}
}

// NewClientV3 is a client of this member alone.
func NewClientV3(m *member) (*clientv3.Client, error) {
	if m.grpcAddr == "" {
		return nil, errors.New("the member has no address for gRPC")
	}
	cfg := clientv3.Config{
		Endpoints:          []string{m.grpcAddr},
		DialTimeout:        5 * time.Second,
		DialOptions:        append([]grpc.DialOption{grpc.WithBlock()}, m.DialOptions...),
		MaxCallSendMsgSize: m.clientMaxCallSendMsgSize,
		MaxCallRecvMsgSize: m.clientMaxCallRecvMsgSize,
	}
	if m.ClientTLSInfo != nil {
		var err error
		if cfg.TLS, err = m.ClientTLSInfo.ClientConfig(); err != nil {
			return nil, err
		}
	}
	return newClientV3(cfg)
}

func newClientV3(cfg clientv3.Config) (*clientv3.Client, error) { return clientv3.New(cfg) }

func WaitClientV3(t testing.TB, kv clientv3.KV) {
	var err error
	for end := time.Now().Add(requestTimeout); time.Now().Before(end); time.Sleep(tickDuration) {
		ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
		_, err = kv.Get(ctx, "/")
		cancel()
		if err == nil {
			return
		}
	}
	t.Fatalf("the client is not ready: %v", err)
}

// MustNewHTTPClient is a client of these addresses for the tests that spoke etcd's API of version 2.
func MustNewHTTPClient(t testing.TB, urls []string, info *transport.TLSInfo) client.Client {
	var secure *tls.Config
	if info != nil {
		var err error
		if secure, err = info.ClientConfig(); err != nil {
			t.Fatal(err)
		}
	}
	return client.New(urls, secure)
}
