// Connections of the tests that can be cut: between a client and its member, and between members.

package integration

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"go.etcd.io/etcd/pkg/transport"
)

// link passes what arrives at an address on to a server, until it is told not to.
type link struct {
	listener net.Listener
	target   string // address of the server, by TCP
	of       func(net.Conn) *member

	mu       sync.Mutex
	changed  *sync.Cond
	pairs    map[*pair]struct{}
	paused   bool // new connections wait
	silent   bool // nothing passes, and nobody is told
	severed  map[*member]bool
	closed   bool
	handlers sync.WaitGroup
}

type pair struct {
	in, out net.Conn
	from    *member
}

func newLink(listener net.Listener, target string, of func(net.Conn) *member) *link {
	l := &link{listener: listener, target: target, of: of, pairs: map[*pair]struct{}{}, severed: map[*member]bool{}}
	l.changed = sync.NewCond(&l.mu)
	l.handlers.Add(1)
	go l.accept()
	return l
}

func newUnixLink(address, target string) (*link, error) {
	listener, err := transport.NewUnixListener(address)
	if err != nil {
		return nil, err
	}
	return newLink(listener, target, nil), nil
}

func (l *link) accept() {
	defer l.handlers.Done()
	for {
		in, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.handlers.Add(1)
		go l.serve(in)
	}
}

func (l *link) serve(in net.Conn) {
	defer l.handlers.Done()
	defer in.Close()
	p := &pair{in: in}
	if l.of != nil {
		p.from = l.of(in)
	}
	l.mu.Lock()
	l.pairs[p] = struct{}{}
	for l.paused && !l.closed {
		l.changed.Wait()
	}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.pairs, p)
		l.mu.Unlock()
	}()
	if !l.passes(p) {
		return
	}
	out, err := net.Dial("tcp", l.target)
	if err != nil {
		return
	}
	defer out.Close()
	l.mu.Lock()
	p.out = out
	_, known := l.pairs[p]
	l.mu.Unlock()
	if !known {
		return
	}
	var both sync.WaitGroup
	both.Add(2)
	go func() { l.copy(p, out, in); both.Done() }()
	go func() { l.copy(p, in, out); both.Done() }()
	both.Wait()
}

// passes waits while the pair's bytes may not pass; it is false when they never will.
func (l *link) passes(p *pair) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if _, known := l.pairs[p]; !known || l.closed {
			return false
		}
		if !l.silent && !l.severed[p.from] && !l.severed[nil] {
			return true
		}
		l.changed.Wait()
	}
}

func (l *link) copy(p *pair, to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buffer := make([]byte, 64*1024)
	for {
		n, err := from.Read(buffer)
		if !l.passes(p) || err != nil && n == 0 {
			return
		}
		if _, err = to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// drop ends the connections that are of these; the caller holds the lock.
func (l *link) drop(which func(*pair) bool) {
	for p := range l.pairs {
		if which(p) {
			p.in.Close()
			if p.out != nil {
				p.out.Close()
			}
			delete(l.pairs, p)
		}
	}
	l.changed.Broadcast()
}

func every(*pair) bool { return true }

func (l *link) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(every)
}

func (l *link) pause(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paused = on
	l.changed.Broadcast()
}

func (l *link) blackhole(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.silent = on
	if !on {
		l.drop(every)
	}
}

// sever lets nothing of a member pass (of nil: of none), in silence; mended, it must connect anew.
func (l *link) sever(from *member, on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if on {
		l.severed[from] = true
		return
	}
	delete(l.severed, from)
	l.drop(func(p *pair) bool { return from == nil || p.from == from || p.from == nil })
}

func (l *link) Close() {
	l.listener.Close()
	l.mu.Lock()
	l.closed = true
	l.drop(every)
	l.mu.Unlock()
	l.handlers.Wait()
}

// ownerOf is the member whose process made a connection from this machine.
func ownerOf(c net.Conn) *member {
	remote, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return nil
	}
	inode := inodeOf(remote.Port, c.LocalAddr().(*net.TCPAddr).Port)
	if inode == "" {
		return nil
	}
	running.Lock()
	defer running.Unlock()
	for pid, m := range running.members {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, file := range files {
			if to, err := os.Readlink(file); err == nil && to == "socket:["+inode+"]" {
				return m
			}
		}
	}
	return nil
}

func inodeOf(local, remote int) string {
	table, err := os.Open("/proc/net/tcp")
	if err != nil {
		return ""
	}
	defer table.Close()
	ends := [2]string{fmt.Sprintf(":%04X", local), fmt.Sprintf(":%04X", remote)}
	for lines := bufio.NewScanner(table); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) > 9 && strings.HasSuffix(f[1], ends[0]) && strings.HasSuffix(f[2], ends[1]) {
			return f[9]
		}
	}
	return ""
}
