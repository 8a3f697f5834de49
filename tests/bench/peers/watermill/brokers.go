package main

import (
	"fmt"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	client "github.com/nats-io/nats.go"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
)

const (
	// The metadata that says what a message is about, and how many things there are.
	subject  = "subject"
	subjects = 1000
	// Subscribers of a group, where each takes one message at a time.
	members = 64
)

func kafkaPublisher(address string) (message.Publisher, error) {
	config := kafka.DefaultSaramaSyncPublisherConfig()
	config.Version = sarama.V2_8_0_0
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.MaxMessageBytes = 900_000
	key := func(_ string, one *message.Message) (string, error) { return one.Metadata.Get(subject), nil }
	return kafka.NewPublisher(kafka.PublisherConfig{
		Brokers:               []string{address},
		Marshaler:             kafka.NewWithPartitioningMarshaler(key),
		OverwriteSaramaConfig: config,
	}, nil)
}

// One member: partitions are read beside each other, a message at a time.
func kafkaSubscribers(address, group string) ([]message.Subscriber, error) {
	config := kafka.DefaultSaramaSubscriberConfig()
	config.Version = sarama.V2_8_0_0
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.ChannelBufferSize = window
	one, err := kafka.NewSubscriber(kafka.SubscriberConfig{
		Brokers:               []string{address},
		Unmarshaler:           kafka.DefaultMarshaler{},
		OverwriteSaramaConfig: config,
		ConsumerGroup:         group,
	}, nil)
	return []message.Subscriber{one}, err
}

func natsPublisher(address string) (message.Publisher, error) {
	return nats.NewPublisher(nats.PublisherConfig{URL: "nats://" + address}, nil)
}

// Each of the members of one subscriber takes a message at a time, and does not wait for its acknowledgement.
func natsSubscribers(address, group string) ([]message.Subscriber, error) {
	one, err := nats.NewSubscriber(nats.SubscriberConfig{
		URL:              "nats://" + address,
		QueueGroupPrefix: group,
		SubscribersCount: members,
		JetStream: nats.JetStreamConfig{
			DurablePrefix:    group,
			AckAsync:         true,
			SubscribeOptions: []client.SubOpt{client.DeliverAll(), client.AckExplicit(), client.MaxAckPending(16 * window)},
		},
	}, nil)
	return []message.Subscriber{one}, err
}

// A connection is busy until its command is answered.
func redisClient(address string, connections int) redis.UniversalClient {
	return redis.NewClient(&redis.Options{Addr: address, PoolSize: connections, ReadTimeout: 30 * time.Second})
}

func redisPublisher(address string) (message.Publisher, error) {
	return redisstream.NewPublisher(redisstream.PublisherConfig{Client: redisClient(address, window)}, nil)
}

func redisSubscribers(address, group string) ([]message.Subscriber, error) {
	all := make([]message.Subscriber, members)
	for at := range all {
		one, err := redisstream.NewSubscriber(redisstream.SubscriberConfig{
			Client:        redisClient(address, 4),
			Consumer:      fmt.Sprintf("member-%d", at),
			ConsumerGroup: group,
		}, nil)
		if err != nil {
			return nil, err
		}
		all[at] = one
	}
	return all, nil
}

// A queue of the kind that the others use.
func rabbitConfig(address string) amqp.Config {
	config := amqp.NewDurableQueueConfig("amqp://" + address)
	config.Queue.Arguments = amqp091.Table{"x-queue-type": "quorum"}
	return config
}

func rabbitPublisher(address string) (message.Publisher, error) {
	config := rabbitConfig(address)
	config.Publish.ConfirmDelivery = true
	return amqp.NewPublisher(config, watermill.NopLogger{})
}

// Each of the members takes a message at a time.
func rabbitSubscribers(address, _ string) ([]message.Subscriber, error) {
	all := make([]message.Subscriber, members)
	for at := range all {
		config := rabbitConfig(address)
		config.Consume.Qos.PrefetchCount = 16 * window / members
		one, err := amqp.NewSubscriber(config, watermill.NopLogger{})
		if err != nil {
			return nil, err
		}
		all[at] = one
	}
	return all, nil
}
