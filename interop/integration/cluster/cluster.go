// Package integration offers etcd's integration tests the clusters of their own package of this name, but made of
// processes of another program.
package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	client "conclave/v2client"

	"go.etcd.io/etcd/clientv3"
	epb "go.etcd.io/etcd/etcdserver/api/v3election/v3electionpb"
	lockpb "go.etcd.io/etcd/etcdserver/api/v3lock/v3lockpb"
	pb "go.etcd.io/etcd/etcdserver/etcdserverpb"
	"go.etcd.io/etcd/pkg/transport"
	"go.etcd.io/etcd/pkg/types"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
)

const (
	// RequestWaitTimeout is how long the tests wait for an answer, or for a lost leader to show.
	RequestWaitTimeout = 4 * time.Second

	tickDuration   = 10 * time.Millisecond
	requestTimeout = 20 * time.Second

	// ThroughProxy tells tests that no proxy stands between them and the server.
	ThroughProxy = false
)

var electionTicks = 10

func fixture(dir, name string) transport.TLSInfo {
	return transport.TLSInfo{
		KeyFile:        dir + "/" + name + ".key.insecure",
		CertFile:       dir + "/" + name + ".crt",
		TrustedCAFile:  dir + "/ca.crt",
		ClientCertAuth: true,
	}
}

var (
	testTLSInfo          = fixture("./fixtures", "server")
	testTLSInfoIP        = fixture("./fixtures", "server-ip")
	testTLSInfoExpired   = fixture("./fixtures-expired", "server")
	testTLSInfoExpiredIP = fixture("./fixtures-expired", "server-ip")

	defaultTokenJWT = "jwt,pub-key=./fixtures/server.crt,priv-key=./fixtures/server.key.insecure,sign-method=RS256,ttl=1s"
)

// ClusterConfig has the fields that etcd's tests set; the zero value of each is the server's default.
type ClusterConfig struct {
	Size                        int
	PeerTLS, ClientTLS          *transport.TLSInfo
	DiscoveryURL                string
	AuthToken                   string
	AuthTokenTTL                uint
	UseGRPC                     bool
	QuotaBackendBytes           int64
	MaxTxnOps, MaxRequestBytes  uint
	SnapshotCount               uint64
	SnapshotCatchUpEntries      uint64
	GRPCKeepAliveMinTime        time.Duration
	GRPCKeepAliveInterval       time.Duration
	GRPCKeepAliveTimeout        time.Duration
	SkipCreatingClient          bool
	ClientMaxCallSendMsgSize    int
	ClientMaxCallRecvMsgSize    int
	UseIP                       bool
	EnableLeaseCheckpoint       bool
	LeaseCheckpointInterval     time.Duration
	LeaseCheckpointPersist      bool
	WatchProgressNotifyInterval time.Duration
	CorruptCheckTime            time.Duration
}

type cluster struct {
	cfg     *ClusterConfig
	Members []*member
}

func NewCluster(t testing.TB, size int) *cluster {
	return NewClusterByConfig(t, &ClusterConfig{Size: size})
}

// NewClusterByConfig is a cluster that is not launched yet.
func NewClusterByConfig(t testing.TB, cfg *ClusterConfig) *cluster {
	if cfg.DiscoveryURL != "" {
		t.Skip("discovery by etcd's API of version 2")
	}
	c := &cluster{cfg: cfg}
	all := types.URLsMap{}
	for i := 0; i < cfg.Size; i++ {
		m := c.mustNewMember(t)
		all[m.Name] = m.PeerURLs
		c.Members = append(c.Members, m)
	}
	for _, m := range c.Members {
		m.InitialPeerURLsMap = all
	}
	return c
}

func (c *cluster) mustNewMember(t testing.TB) *member {
	return mustNewMember(t, memberConfig{strconv.Itoa(rand.Int()), *c.cfg})
}

func (c *cluster) Launch(t testing.TB) {
	launched := make(chan error)
	for _, m := range c.Members {
		go func(m *member) { launched <- m.Launch() }(m)
	}
	for range c.Members {
		if err := <-launched; err != nil {
			t.Fatalf("a member cannot start: %v", err)
		}
	}
	for _, m := range c.Members {
		m.WaitOK(t)
	}
	c.waitMembersMatch(t, c.HTTPMembers())
}

func (c *cluster) Terminate(t testing.TB) {
	var all sync.WaitGroup
	for _, m := range c.Members {
		all.Add(1)
		go func(m *member) { m.Terminate(t); all.Done() }(m)
	}
	all.Wait()
}

func (c *cluster) URL(i int) string { return c.Members[i].URL() }

// URLs are the addresses of all members that run.
func (c *cluster) URLs() (urls []string) {
	for _, m := range c.Members {
		if !m.s.isStopped() {
			urls = append(urls, m.ClientURLs.StringSlice()...)
		}
	}
	return urls
}

func (c *cluster) HTTPMembers() (all []client.Member) {
	for _, m := range c.Members {
		all = append(all, client.Member{Name: m.Name, PeerURLs: m.PeerURLs.StringSlice(), ClientURLs: m.ClientURLs.StringSlice()})
	}
	return all
}

// waitMembersMatch waits until every member that runs says that these are all.
func (c *cluster) waitMembersMatch(t testing.TB, want []client.Member) {
	byURL := func(all []client.Member) {
		sort.Slice(all, func(i, j int) bool { return all[i].PeerURLs[0] < all[j].PeerURLs[0] })
	}
	byURL(want)
	for _, m := range c.Members {
		end := time.Now().Add(time.Minute)
		for !m.s.isStopped() {
			ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
			list, err := pb.NewClusterClient(m.s.conn).MemberList(ctx, &pb.MemberListRequest{})
			cancel()
			var have []client.Member
			if err == nil {
				for _, of := range list.Members {
					have = append(have, client.Member{Name: of.Name, PeerURLs: of.PeerURLs, ClientURLs: of.ClientURLs})
				}
				byURL(have)
				if reflect.DeepEqual(have, want) {
					break
				}
			}
			if time.Now().After(end) {
				t.Fatalf("the members of %s are %v (%v), not %v", m.Name, have, err, want)
			}
			time.Sleep(tickDuration)
		}
	}
}

// change asks the members for a change of the cluster, one after another, until one makes it.
func (c *cluster) change(members []*member, ask func(context.Context, pb.ClusterClient) error) (err error) {
	err = errors.New("no member runs")
	for _, m := range members {
		if m.s == nil || m.s.isStopped() {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
		err = ask(ctx, pb.NewClusterClient(m.s.conn))
		cancel()
		if err == nil || grpcstatus.Code(err) == codes.FailedPrecondition {
			break
		}
	}
	if err != nil && (strings.Contains(err.Error(), "unhealthy cluster") || strings.Contains(err.Error(), "not enough started members")) {
		// In the words of the client of version 2, which the tests look for.
		err = fmt.Errorf("the cluster has no leader: %v", err)
	}
	return err
}

func (c *cluster) add(members []*member, peerURL string) error {
	return c.change(members, func(ctx context.Context, api pb.ClusterClient) error {
		_, err := api.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{peerURL}})
		return err
	})
}

func (c *cluster) addMemberByURL(t testing.TB, clientURL, peerURL string) error {
	for _, m := range c.Members {
		if m.URL() == clientURL {
			if err := c.add([]*member{m}, peerURL); err != nil {
				return err
			}
			c.waitMembersMatch(t, append(c.HTTPMembers(), client.Member{PeerURLs: []string{peerURL}}))
			return nil
		}
	}
	return errors.New("no member of this address: " + clientURL)
}

func (c *cluster) AddMember(t testing.TB) {
	m := c.mustNewMember(t)
	if err := c.add(c.Members, m.PeerURLs[0].String()); err != nil {
		t.Fatalf("a member is not added: %v", err)
	}
	c.join(t, m, m.PeerURLs)
	c.waitMembersMatch(t, c.HTTPMembers())
}

// join starts a member that was added.
func (c *cluster) join(t testing.TB, m *member, urls types.URLs) {
	c.existing(m, urls)
	c.Members = append(c.Members, m)
	if err := m.Launch(); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) existing(m *member, urls types.URLs) {
	m.NewCluster = false
	m.InitialPeerURLsMap = types.URLsMap{m.Name: urls}
	for _, other := range c.Members {
		m.InitialPeerURLsMap[other.Name] = other.PeerURLs
	}
}

func (c *cluster) RemoveMember(t testing.TB, id uint64) {
	if err := c.removeMember(t, id); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) removeMember(t testing.TB, id uint64) error {
	var rest, gone []*member
	for _, m := range c.Members {
		if uint64(m.s.ID()) == id {
			gone = append(gone, m)
		} else {
			rest = append(rest, m)
		}
	}
	err := c.change(append(append([]*member{}, rest...), gone...), func(ctx context.Context, api pb.ClusterClient) error {
		_, err := api.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: id})
		return err
	})
	if err != nil {
		return err
	}
	for _, m := range gone {
		select {
		case <-m.s.StopNotify():
			m.Terminate(t)
		case <-time.After(7*time.Second + m.ElectionTimeout()):
			t.Fatalf("the removed member %s still runs", m.s.ID())
		}
	}
	c.Members = rest
	c.waitMembersMatch(t, c.HTTPMembers())
	return nil
}

// WaitLeader waits until all members that run agree on a leader, and is its place.
func (c *cluster) WaitLeader(t testing.TB) int { return c.waitLeader(t, c.Members) }

func (c *cluster) waitLeader(t testing.TB, members []*member) int {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(tickDuration) {
		var leader uint64
		agreed := true
		for _, m := range members {
			if m.s.isStopped() {
				continue
			}
			now := m.s.Lead()
			agreed = agreed && now != 0 && (leader == 0 || leader == now)
			leader = now
		}
		for i, m := range members {
			if agreed && uint64(m.s.ID()) == leader && !m.s.isStopped() {
				return i
			}
		}
	}
	t.Fatal("no leader in a minute")
	return -1
}

// WaitNoLeader waits until no member that runs knows a leader.
func (c *cluster) WaitNoLeader() { c.waitNoLeader(c.Members) }

func (c *cluster) waitNoLeader(members []*member) {
	for known := true; known; time.Sleep(tickDuration) {
		known = false
		for _, m := range members {
			if m.s.isStopped() {
				continue
			}
			r, err := m.s.status()
			known = known || err == nil && r.Leader != 0
		}
	}
}

// ClusterV3 is a cluster with a client of each member.
type ClusterV3 struct {
	*cluster
	mu      sync.Mutex
	clients []*clientv3.Client
}

func NewClusterV3(t testing.TB, cfg *ClusterConfig) *ClusterV3 {
	cfg.UseGRPC = true
	c := &ClusterV3{cluster: NewClusterByConfig(t, cfg)}
	c.Launch(t)
	for _, m := range c.Members {
		if cfg.SkipCreatingClient {
			break
		}
		made, err := NewClientV3(m)
		if err != nil {
			t.Fatalf("no client: %v", err)
		}
		c.clients = append(c.clients, made)
	}
	return c
}

// TakeClient leaves closing a client to the test.
func (c *ClusterV3) TakeClient(i int) {
	c.mu.Lock()
	c.clients[i] = nil
	c.mu.Unlock()
}

func (c *ClusterV3) Terminate(t testing.TB) {
	c.mu.Lock()
	for _, of := range c.clients {
		if of == nil {
			continue
		}
		if err := of.Close(); err != nil {
			t.Error(err)
		}
	}
	c.mu.Unlock()
	c.cluster.Terminate(t)
}

func (c *ClusterV3) RandClient() *clientv3.Client  { return c.clients[rand.Intn(len(c.clients))] }
func (c *ClusterV3) Client(i int) *clientv3.Client { return c.clients[i] }

func (c *ClusterV3) GetLearnerMembers() (learners []*pb.Member, err error) {
	list, err := c.Client(0).MemberList(context.Background())
	if err != nil {
		return nil, err
	}
	for _, m := range list.Members {
		if m.IsLearner {
			learners = append(learners, m)
		}
	}
	return learners, nil
}

func (c *ClusterV3) AddAndLaunchLearnerMember(t testing.TB) {
	m := c.mustNewMember(t)
	m.isLearner = true
	if _, err := c.Client(0).MemberAddAsLearner(context.Background(), m.PeerURLs.StringSlice()); err != nil {
		t.Fatalf("a learner is not added: %v", err)
	}
	c.join(t, m, m.PeerURLs)
	c.waitMembersMatch(t)
}

// waitMembersMatch waits until the first client hears of exactly these members.
func (c *ClusterV3) waitMembersMatch(t testing.TB) {
	want := map[string]pb.Member{}
	for _, m := range c.Members {
		want[m.Name] = pb.Member{Name: m.Name, PeerURLs: m.PeerURLs.StringSlice(), ClientURLs: m.ClientURLs.StringSlice(), IsLearner: m.isLearner}
	}
	for {
		list, err := c.Client(0).MemberList(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]pb.Member{}
		for _, m := range list.Members {
			m.ID = 0
			have[m.Name] = *m
		}
		if reflect.DeepEqual(have, want) {
			return
		}
		time.Sleep(tickDuration)
	}
}

// MustNewMember is a member, not launched, for what was added.
func (c *ClusterV3) MustNewMember(t testing.TB, added *clientv3.MemberAddResponse) *member {
	m := c.mustNewMember(t)
	m.isLearner = added.Member.IsLearner
	m.PeerURLs = types.MustNewURLs(added.Member.PeerURLs)
	m.peers.Close()
	m.listenPeers(t)
	c.existing(m, m.PeerURLs)
	return m
}

type grpcAPI struct {
	Cluster     pb.ClusterClient
	KV          pb.KVClient
	Lease       pb.LeaseClient
	Watch       pb.WatchClient
	Maintenance pb.MaintenanceClient
	Auth        pb.AuthClient
	Lock        lockpb.LockClient
	Election    epb.ElectionClient
}

func toGRPC(of *clientv3.Client) grpcAPI {
	c := of.ActiveConnection()
	return grpcAPI{
		pb.NewClusterClient(c), pb.NewKVClient(c), pb.NewLeaseClient(c), pb.NewWatchClient(c), pb.NewMaintenanceClient(c),
		pb.NewAuthClient(c), lockpb.NewLockClient(c), epb.NewElectionClient(c),
	}
}
