// A member's server: a process of the program that is tested.

package integration

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/etcdserver/api/v3rpc"
	pb "go.etcd.io/etcd/etcdserver/etcdserverpb"
	"go.etcd.io/etcd/pkg/transport"
	"go.etcd.io/etcd/pkg/types"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

var running = struct {
	sync.Mutex
	members map[int]*member
}{members: map[int]*member{}}

// server is what the tests know of a member's inside, asked for from without.
type server struct {
	m       *member
	cmd     *exec.Cmd
	conn    *grpc.ClientConn
	tls     *tls.Config
	id      types.ID
	stopped chan struct{}
	ready   chan struct{}
	waits   sync.WaitGroup
}

func program() string {
	if p := os.Getenv("ITEST_PROGRAM"); p != "" {
		return p
	}
	return "etcd"
}

// kind is "conclave", "3.4" or "3.5": which flags the program knows.
func kind() string {
	if k := os.Getenv("ITEST_KIND"); k != "" {
		return k
	}
	return "conclave"
}

func tlsFlags(prefix string, info *transport.TLSInfo) []string {
	if info == nil || info.Empty() {
		return nil
	}
	flags := []string{"--" + prefix + "cert-file=" + info.CertFile, "--" + prefix + "key-file=" + info.KeyFile}
	if info.TrustedCAFile != "" {
		flags = append(flags, "--"+prefix+"trusted-ca-file="+info.TrustedCAFile)
	}
	if info.ClientCertAuth {
		flags = append(flags, "--"+prefix+"client-cert-auth")
	}
	if info.CRLFile != "" {
		flags = append(flags, "--"+prefix+"crl-file="+info.CRLFile)
	}
	if len(info.CipherSuites) > 0 && prefix == "" {
		names := []string{}
		for _, suite := range info.CipherSuites {
			names = append(names, tls.CipherSuiteName(suite))
		}
		flags = append(flags, "--cipher-suites="+strings.Join(names, ","))
	}
	return flags
}

func (m *member) flags() []string {
	flags := []string{
		"--name=" + m.Name,
		"--data-dir=" + m.DataDir,
		"--listen-client-urls=" + m.ClientURLs.String(),
		"--advertise-client-urls=" + m.ClientURLs.String(),
		"--listen-peer-urls=" + m.peerListen,
		"--initial-advertise-peer-urls=" + m.PeerURLs.String(),
		"--initial-cluster-token=" + m.InitialClusterToken,
		fmt.Sprintf("--heartbeat-interval=%d", m.TickMs),
		fmt.Sprintf("--election-timeout=%d", int(m.TickMs)*m.ElectionTicks),
		fmt.Sprintf("--snapshot-count=%d", m.SnapshotCount),
		fmt.Sprintf("--quota-backend-bytes=%d", m.QuotaBackendBytes),
		fmt.Sprintf("--max-txn-ops=%d", m.MaxTxnOps),
		fmt.Sprintf("--max-request-bytes=%d", m.MaxRequestBytes),
		fmt.Sprintf("--bcrypt-cost=%d", m.BcryptCost),
		fmt.Sprintf("--strict-reconfig-check=%t", m.StrictReconfigCheck),
		"--auth-token=" + m.AuthToken,
		"--experimental-initial-corrupt-check",
	}
	if m.DiscoveryURL != "" {
		flags = append(flags, "--discovery="+m.DiscoveryURL)
	} else {
		flags = append(flags, "--initial-cluster="+m.InitialPeerURLsMap.String())
	}
	if m.NewCluster {
		flags = append(flags, "--initial-cluster-state=new")
	} else {
		flags = append(flags, "--initial-cluster-state=existing")
	}
	if m.ForceNewCluster {
		flags = append(flags, "--force-new-cluster")
	}
	if m.TokenTTL > 0 {
		flags = append(flags, fmt.Sprintf("--auth-token-ttl=%d", m.TokenTTL))
	}
	if m.SnapshotCatchUpEntries > 0 && kind() == "conclave" {
		flags = append(flags, fmt.Sprintf("--snapshot-catchup-entries=%d", m.SnapshotCatchUpEntries))
	}
	progress := m.WatchProgressNotifyInterval
	if progress == 0 {
		// A variable that tests set, of the server that they believe to have in their own process.
		progress = v3rpc.GetProgressReportInterval()
	}
	flags = append(flags, "--experimental-watch-progress-notify-interval="+progress.String())
	if m.CorruptCheckTime > 0 {
		flags = append(flags, "--experimental-corrupt-check-time="+m.CorruptCheckTime.String())
	}
	if m.EnableLeaseCheckpoint {
		flags = append(flags, "--experimental-enable-lease-checkpoint")
	}
	if m.LeaseCheckpointPersist {
		flags = append(flags, "--experimental-enable-lease-checkpoint-persist")
	}
	for name, d := range map[string]time.Duration{"min-time": m.keepAliveMinTime, "interval": m.keepAliveInterval, "timeout": m.keepAliveTimeout} {
		if d > 0 {
			flags = append(flags, "--grpc-keepalive-"+name+"="+d.String())
		}
	}
	if kind() != "conclave" {
		flags = append(flags, "--logger=zap")
	}
	flags = append(flags, tlsFlags("", m.ClientTLSInfo)...)
	return append(flags, tlsFlags("peer-", m.PeerTLSInfo)...)
}

var errEnded = errors.New("the server ended as it started")

// startServer starts the process, and waits until it answers or has ended; or for a moment, as a member without its
// quorum may answer much later.
func startServer(m *member) (*server, error) {
	s := &server{m: m, stopped: make(chan struct{}), ready: make(chan struct{})}
	if m.s != nil {
		s.id = m.s.id
	}
	log := filepath.Join(os.Getenv("ITEST_LOGS"), m.Name+".log")
	if os.Getenv("ITEST_LOGS") == "" {
		log = os.DevNull
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	s.cmd = exec.Command(program(), m.flags()...)
	s.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	s.cmd.Stdout, s.cmd.Stderr = out, out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	fmt.Fprintln(out, s.cmd.Args)
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	running.Lock()
	running.members[s.cmd.Process.Pid] = m
	running.Unlock()
	go func() {
		s.cmd.Wait()
		running.Lock()
		delete(running.members, s.cmd.Process.Pid)
		running.Unlock()
		close(s.stopped)
	}()
	secure := grpc.WithInsecure()
	if m.ClientTLSInfo != nil {
		if s.tls, err = m.ClientTLSInfo.ClientConfig(); err != nil {
			s.kill()
			return nil, err
		}
		s.tls.InsecureSkipVerify = true
		secure = grpc.WithTransportCredentials(credentials.NewTLS(s.tls.Clone()))
	}
	s.conn, err = grpc.Dial(m.ClientURLs[0].Host, secure, grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}))
	if err != nil {
		s.kill()
		return nil, err
	}
	live := make(chan struct{})
	s.waits.Add(1)
	go s.await(live)
	select {
	case <-live:
	case <-s.stopped:
	case <-time.After(3 * time.Second):
	}
	// What answered may be another that has the address.
	time.Sleep(5 * tickDuration)
	if s.isStopped() {
		s.kill()
		return s, errEnded
	}
	return s, nil
}

// await tells when the server answers, and when it is one of a cluster that has a leader and a version.
func (s *server) await(live chan struct{}) {
	defer s.waits.Done()
	answered := false
	for {
		select {
		case <-s.stopped:
			return
		default:
		}
		r, err := s.status()
		if status.Code(err) == codes.InvalidArgument && s.id != 0 {
			// With users, the program may want a name for this; a restarted member is ready as it says so.
			r, err = &pb.StatusResponse{Header: &pb.ResponseHeader{MemberId: uint64(s.id)}, Leader: uint64(s.id)}, nil
		}
		if err == nil {
			if !answered {
				answered = true
				s.id = types.ID(r.Header.MemberId)
				close(live)
			}
			if r.Leader != 0 && s.clusterVersion() {
				close(s.ready)
				return
			}
		}
		time.Sleep(tickDuration)
	}
}

func (s *server) status() (*pb.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return pb.NewMaintenanceClient(s.conn).Status(ctx, &pb.StatusRequest{})
}

func (s *server) clusterVersion() bool {
	transport := &http.Transport{DisableKeepAlives: true}
	if s.tls != nil {
		transport.TLSClientConfig = s.tls.Clone()
	}
	c := http.Client{Transport: transport, Timeout: time.Second}
	r, err := c.Get(s.m.ClientURLs[0].String() + "/version")
	if err != nil {
		return false
	}
	defer r.Body.Close()
	var of struct{ Etcdcluster string }
	return json.NewDecoder(r.Body).Decode(&of) == nil && of.Etcdcluster != "" && of.Etcdcluster != "not_decided"
}

func (s *server) kill() {
	s.cmd.Process.Kill()
	<-s.stopped
	if s.conn != nil {
		s.conn.Close()
		s.waits.Wait()
	}
}

func (s *server) isStopped() bool {
	select {
	case <-s.stopped:
		return true
	default:
		return false
	}
}

func (s *server) ID() types.ID                 { return s.id }
func (s *server) StopNotify() <-chan struct{}  { return s.stopped }
func (s *server) ReadyNotify() <-chan struct{} { return s.ready }

func (s *server) Lead() uint64 {
	r, err := s.status()
	if err != nil {
		return 0
	}
	return r.Leader
}

func (s *server) Leader() types.ID { return types.ID(s.Lead()) }

func (s *server) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	return pb.NewMaintenanceClient(s.conn).Alarm(ctx, r)
}

// TransferLeadership hands a leader's office to some other voter.
func (s *server) TransferLeadership() error {
	if s.Lead() != uint64(s.id) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.m.ReqTimeout())
	defer cancel()
	list, err := pb.NewClusterClient(s.conn).MemberList(ctx, &pb.MemberListRequest{})
	if err != nil {
		return err
	}
	for _, other := range list.Members {
		if other.ID != uint64(s.id) && !other.IsLearner {
			_, err = pb.NewMaintenanceClient(s.conn).MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: other.ID})
			if err == nil {
				return nil
			}
		}
	}
	return err
}

var lastPort = 31000 + os.Getpid()*20%900

// freePort counts on through the ports from 31000 to 31999; a member keeps its own for as long as it lives.
func freePort() int {
	for i := 0; i < 1000; i++ {
		lastPort++
		if lastPort > 31999 {
			lastPort = 31000
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", lastPort))
		if err == nil {
			l.Close()
			return lastPort
		}
	}
	panic("no port is free")
}
