// Package v2client has the names of etcd's client of version 2 that its integration tests use, answered by version 3:
// the tests need some write and read that shows a cluster's progress, not that API.
package v2client

import (
	"context"
	"crypto/tls"
	"errors"
	"net/url"
	"strconv"
	"strings"

	pb "go.etcd.io/etcd/etcdserver/etcdserverpb"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

type Client struct {
	urls   []string
	secure *tls.Config
}

func New(urls []string, secure *tls.Config) Client { return Client{urls, secure} }

type Member struct {
	ID, Name             string
	PeerURLs, ClientURLs []string
}

type Node struct {
	Key, Value                  string
	CreatedIndex, ModifiedIndex uint64
}

type Response struct{ Node *Node }

type (
	GetOptions     struct{}
	SetOptions     struct{}
	WatcherOptions struct{ AfterIndex uint64 }
	KeysAPI        struct{ Client }
	MembersAPI     struct{ Client }
	Watcher        struct {
		KeysAPI
		key   string
		after uint64
	}
)

func NewKeysAPI(c Client) KeysAPI       { return KeysAPI{c} }
func NewMembersAPI(c Client) MembersAPI { return MembersAPI{c} }

// call asks one server after another, on a connection of its own.
func (c Client) call(do func(*grpc.ClientConn) error) (err error) {
	for _, of := range c.urls {
		var at *url.URL
		if at, err = url.Parse(of); err != nil {
			return err
		}
		secure := grpc.WithInsecure()
		if c.secure != nil {
			secure = grpc.WithTransportCredentials(credentials.NewTLS(c.secure.Clone()))
		}
		var conn *grpc.ClientConn
		if conn, err = grpc.Dial(at.Host, secure); err == nil {
			err = do(conn)
			conn.Close()
		}
		if err == nil {
			return nil
		}
	}
	return err
}

func path(key string) []byte { return []byte("/" + strings.TrimPrefix(key, "/")) }

func (k KeysAPI) Create(ctx context.Context, key, value string) (*Response, error) {
	return k.put(ctx, key, value, []*pb.Compare{{
		Target: pb.Compare_CREATE, Key: path(key), TargetUnion: &pb.Compare_CreateRevision{},
	}})
}

func (k KeysAPI) Set(ctx context.Context, key, value string, _ *SetOptions) (*Response, error) {
	return k.put(ctx, key, value, nil)
}

func (k KeysAPI) put(ctx context.Context, key, value string, when []*pb.Compare) (r *Response, err error) {
	err = k.call(func(c *grpc.ClientConn) error {
		done, err := pb.NewKVClient(c).Txn(ctx, &pb.TxnRequest{Compare: when, Success: []*pb.RequestOp{
			{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: path(key), Value: []byte(value)}}},
		}})
		if err == nil && !done.Succeeded {
			err = errors.New("Key already exists")
		}
		if err == nil {
			r, err = k.Get(ctx, key, nil)
		}
		return err
	})
	return r, err
}

func (k KeysAPI) Get(ctx context.Context, key string, _ *GetOptions) (r *Response, err error) {
	err = k.call(func(c *grpc.ClientConn) error {
		done, err := pb.NewKVClient(c).Range(ctx, &pb.RangeRequest{Key: path(key)})
		if err == nil && len(done.Kvs) == 0 {
			err = errors.New("Key not found")
		}
		if err == nil {
			kv := done.Kvs[0]
			r = &Response{&Node{string(kv.Key), string(kv.Value), uint64(kv.CreateRevision), uint64(kv.ModRevision)}}
		}
		return err
	})
	return r, err
}

func (k KeysAPI) Watcher(key string, o *WatcherOptions) Watcher { return Watcher{k, key, o.AfterIndex} }

func (w Watcher) Next(ctx context.Context) (r *Response, err error) {
	err = w.call(func(c *grpc.ClientConn) error {
		stream, err := pb.NewWatchClient(c).Watch(ctx)
		if err != nil {
			return err
		}
		err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
			CreateRequest: &pb.WatchCreateRequest{Key: path(w.key), StartRevision: int64(w.after) + 1},
		}})
		for err == nil {
			var got *pb.WatchResponse
			if got, err = stream.Recv(); err == nil && len(got.Events) > 0 {
				kv := got.Events[0].Kv
				r = &Response{&Node{string(kv.Key), string(kv.Value), uint64(kv.CreateRevision), uint64(kv.ModRevision)}}
				break
			}
		}
		return err
	})
	return r, err
}

func (m MembersAPI) Remove(ctx context.Context, id string) error {
	number, err := strconv.ParseUint(id, 16, 64)
	if err != nil {
		return err
	}
	return m.call(func(c *grpc.ClientConn) error {
		_, err := pb.NewClusterClient(c).MemberRemove(ctx, &pb.MemberRemoveRequest{ID: number})
		return err
	})
}
