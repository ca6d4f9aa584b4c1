// What Go's own client of etcd does with what our clients do: locks, elections, and services found by grpc-go.
// Against $ENDPOINTS; a CA in $CA makes it TLS; $CONCLAVE is our program, for the native side.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
	"go.etcd.io/etcd/clientv3/naming/endpoints"
	"go.etcd.io/etcd/clientv3/naming/resolver"
	"go.etcd.io/etcd/etcdserver/api/v3lock/v3lockpb"
	"go.etcd.io/etcd/pkg/transport"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

const (
	ttlSeconds = 30
	patience   = 60 * time.Second
	// Long enough for who is wrongly let in to come in.
	kept  = 300 * time.Millisecond
	turns = 5
)

var client *clientv3.Client

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func soon() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}

// Who holds a lock: its token, and what gives it back.
type held struct {
	token   int64
	release func()
}

// Takes a lock in one of the ways that there are; an error if it is not there in time.
type taker struct {
	kind string
	take func(ctx context.Context, name string) (held, error)
}

var takers = []taker{{"concurrency.Mutex", byMutex}, {"v3lock", byService}, {"conclave lock", byProgram}}

func createRevision(key string) int64 {
	ctx, cancel := soon()
	defer cancel()
	found, err := client.Get(ctx, key)
	must(err)
	if len(found.Kvs) != 1 {
		panic("the key of a lock that is held is there")
	}
	return found.Kvs[0].CreateRevision
}

func byMutex(ctx context.Context, name string) (held, error) {
	session, err := concurrency.NewSession(client, concurrency.WithTTL(ttlSeconds))
	must(err)
	mutex := concurrency.NewMutex(session, name)
	if err := mutex.Lock(ctx); err != nil {
		must(session.Close())
		return held{}, err
	}
	release := func() {
		must(mutex.Unlock(context.Background()))
		must(session.Close())
	}
	return held{createRevision(mutex.Key()), release}, nil
}

func byService(ctx context.Context, name string) (held, error) {
	lease, err := client.Grant(context.Background(), ttlSeconds)
	must(err)
	service := v3lockpb.NewLockClient(client.ActiveConnection())
	locked, err := service.Lock(ctx, &v3lockpb.LockRequest{Name: []byte(name), Lease: int64(lease.ID)})
	revoke := func() {
		_, err := client.Revoke(context.Background(), lease.ID)
		must(err)
	}
	if err != nil {
		revoke()
		return held{}, err
	}
	release := func() {
		_, err := service.Unlock(context.Background(), &v3lockpb.UnlockRequest{Key: locked.Key})
		must(err)
		revoke()
	}
	return held{createRevision(string(locked.Key)), release}, nil
}

// Our program with a command that says a line when it runs and ends when its input does.
type program struct {
	command *exec.Cmd
	input   io.WriteCloser
	lines   chan string
}

func conclave(arguments ...string) *program {
	global := []string{"--endpoints", strings.Join(client.Endpoints(), ",")}
	if ca := os.Getenv("CA"); ca != "" {
		global = append(global, "--cacert", ca)
	}
	command := exec.Command(os.Getenv("CONCLAVE"), append(global, arguments...)...)
	// It dies with us, whatever happens.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	input, err := command.StdinPipe()
	must(err)
	output, err := command.StdoutPipe()
	must(err)
	must(command.Start())
	lines := make(chan string, 16)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(output); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	return &program{command, input, lines}
}

// Ends its command, and waits for it.
func (p *program) end() {
	must(p.input.Close())
	for range p.lines {
	}
	must(p.command.Wait())
}

func (p *program) line() string {
	select {
	case line := <-p.lines:
		return line
	case <-time.After(patience):
		panic("our program says nothing")
	}
}

func byProgram(ctx context.Context, name string) (held, error) {
	p := conclave("lock", name, "--", "sh", "-c", "echo $FENCING_TOKEN; cat")
	select {
	case line := <-p.lines:
		token, err := strconv.ParseInt(line, 10, 64)
		must(err)
		return held{token, p.end}, nil
	case <-ctx.Done():
		must(p.command.Process.Signal(syscall.SIGTERM))
		for range p.lines {
		}
		p.command.Wait()
		return held{}, ctx.Err()
	}
}

// Each way excludes each, and whoever waits comes next, with a greater token.
func exclusion() {
	for _, first := range takers {
		for _, second := range takers {
			ctx, cancel := soon()
			holder, err := first.take(ctx, "go/lock")
			must(err)
			short, stop := context.WithTimeout(ctx, kept)
			if _, err := second.take(short, "go/lock"); err == nil {
				panic(second.kind + " holds beside " + first.kind)
			}
			stop()
			next := make(chan held)
			go func() {
				waiter, err := second.take(ctx, "go/lock")
				must(err)
				next <- waiter
			}()
			select {
			case <-next:
				panic(second.kind + " does not wait for " + first.kind)
			case <-time.After(kept):
			}
			holder.release()
			waiter := <-next
			if waiter.token <= holder.token {
				panic(fmt.Sprintf("%s has %d after %d", second.kind, waiter.token, holder.token))
			}
			waiter.release()
			cancel()
		}
	}
}

// All at once: never two, and every token above the last.
func crowd() {
	var holders int32
	var last int64
	var all sync.WaitGroup
	for _, one := range append(takers, takers...) {
		all.Add(1)
		go func(take func(context.Context, string) (held, error)) {
			defer all.Done()
			for turn := 0; turn < turns; turn++ {
				ctx, cancel := soon()
				holder, err := take(ctx, "go/crowd")
				must(err)
				if atomic.AddInt32(&holders, 1) != 1 || holder.token <= atomic.SwapInt64(&last, holder.token) {
					panic("two hold, or a token went back")
				}
				atomic.AddInt32(&holders, -1)
				holder.release()
				cancel()
			}
		}(one.take)
	}
	all.Wait()
}

// Go leads, ours waits; Go resigns, ours leads; ours ends, Go leads again. Go's observer sees all of it.
func elections() {
	ctx, cancel := soon()
	defer cancel()
	session, err := concurrency.NewSession(client, concurrency.WithTTL(ttlSeconds))
	must(err)
	defer session.Close()
	election := concurrency.NewElection(session, "go/election")
	seen := concurrency.NewElection(session, "go/election").Observe(ctx)
	leads := func(wanted string) {
		for answer := range seen {
			if string(answer.Kvs[0].Value) == wanted {
				return
			}
		}
		panic("the observer does not see " + wanted)
	}
	must(election.Campaign(ctx, "go"))
	leads("go")
	native := conclave("elect", "go/election", "native", "--", "sh", "-c", "echo leads; cat")
	select {
	case line := <-native.lines:
		panic("two lead: " + line)
	case <-time.After(kept):
	}
	must(election.Resign(ctx))
	if line := native.line(); line != "leads" {
		panic("our candidate says " + line)
	}
	leads("native")
	again := make(chan error)
	go func() { again <- election.Campaign(ctx, "go again") }()
	select {
	case <-again:
		panic("Go leads beside ours")
	case <-time.After(kept):
	}
	native.end()
	must(<-again)
	leads("go again")
	must(election.Resign(ctx))
}

// A gRPC service that counts its calls.
type counted struct {
	address string
	calls   int64
}

func serve() *counted {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	c := &counted{address: listener.Addr().String()}
	count := func(ctx context.Context, request interface{}, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (interface{}, error) {
		atomic.AddInt64(&c.calls, 1)
		return handle(ctx, request)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(count))
	healthpb.RegisterHealthServer(server, health.NewServer())
	go server.Serve(listener)
	return c
}

// grpc-go's `etcd:///` finds what our registry registers beside what Go registers, and both sides list both.
func naming() {
	ctx, cancel := soon()
	defer cancel()
	const service = "go/shop/api"
	ours, theirs := serve(), serve()
	native := conclave("service", "register", service, ours.address, "--zone", "a", "--meta", "owner=shop", "--drain", "0s", "--", "sh", "-c", "echo registered; cat")
	native.line()
	manager, err := endpoints.NewManager(client, service)
	must(err)
	lease, err := client.Grant(ctx, ttlSeconds)
	must(err)
	added := endpoints.Endpoint{Addr: theirs.address, Metadata: "b"}
	must(manager.AddEndpoint(ctx, service+"/go", added, clientv3.WithLease(lease.ID)))

	// Its answer may be an old one: it asks any member for what that has.
	lists := func(wanted int) {
		for {
			listed, err := manager.List(ctx)
			must(err)
			if len(listed) == wanted {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	lists(2)
	resolved := conclave("service", "resolve", service, "-w", "json")
	text := ""
	for line := range resolved.lines {
		text += line
	}
	must(resolved.command.Wait())
	if !strings.Contains(text, ours.address) || !strings.Contains(text, theirs.address) {
		panic("ours lists " + text)
	}

	builder, err := resolver.NewBuilder(client)
	must(err)
	connection, err := grpc.DialContext(ctx, "etcd:///"+service, grpc.WithInsecure(), grpc.WithResolvers(builder),
		grpc.WithDefaultServiceConfig(`{"loadBalancingPolicy": "round_robin"}`))
	must(err)
	defer connection.Close()
	call := func() {
		_, err := healthpb.NewHealthClient(connection).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
		must(err)
	}
	for atomic.LoadInt64(&ours.calls) == 0 || atomic.LoadInt64(&theirs.calls) == 0 {
		call()
	}
	// It deregisters: soon nothing comes any more, while the other goes on.
	native.end()
	for quiet := 0; quiet < 10; quiet++ {
		before := atomic.LoadInt64(&ours.calls)
		call()
		if atomic.LoadInt64(&ours.calls) != before {
			quiet = -1
			time.Sleep(10 * time.Millisecond)
		}
	}
	_, err = client.Revoke(ctx, lease.ID)
	must(err)
	lists(0)
}

func main() {
	scheme, config := "http://", clientv3.Config{DialTimeout: patience}
	// It logs what we do on purpose: calls that are given up.
	quiet := zap.NewProductionConfig()
	quiet.Level = zap.NewAtomicLevelAt(zap.ErrorLevel)
	config.LogConfig = &quiet
	if ca := os.Getenv("CA"); ca != "" {
		tls, err := transport.TLSInfo{TrustedCAFile: ca}.ClientConfig()
		must(err)
		scheme, config.TLS = "https://", tls
	}
	for _, endpoint := range strings.Split(os.Getenv("ENDPOINTS"), ",") {
		config.Endpoints = append(config.Endpoints, scheme+endpoint)
	}
	var err error
	client, err = clientv3.New(config)
	must(err)
	defer client.Close()
	for _, part := range []struct {
		name string
		run  func()
	}{{"exclusion", exclusion}, {"crowd", crowd}, {"elections", elections}, {"naming", naming}} {
		part.run()
		fmt.Printf("interop: Go etcd clientv3: %s ok\n", part.name)
	}
}
