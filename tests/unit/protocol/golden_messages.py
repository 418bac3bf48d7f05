"""What the Go implementation of Nex 0.2 wrote, byte for byte."""

from __future__ import annotations

DEPLOY = (
    b'{"description":"Workload published in devmode","type":"v8","location":{"Scheme":"nats","'
    b'Opaque":"","User":null,"Host":"NEXCLIFILES","Path":"/echofunctionjs","RawPath":"","OmitH'
    b'ost":false,"ForceQuery":false,"RawQuery":"","Fragment":"","RawFragment":""},"essential":'
    b'false,"workload_jwt":"eyJ0eXAiOiJKV1QiLCJhbGciOiJlZDI1NTE5LW5rZXkifQ.eyJqdGkiOiJCQ0YzQ09'
    b"LRlRDS1NDNVg0UllRU1pNU1lORFdKUk9TR1FKSDVJSEhHQUZBUU1GRDQ1WTNBIiwiaWF0IjoxNzk1MzYyMjQyLCJ"
    b"pc3MiOiJBQUQ3SlZTUlZXVkJUSUJUNUVHM0JaRVZIQzROVDVaRE5WRU5HWTdMTkVBVVZLT1JBWVpYQ0pQSCIsInN"
    b"1YiI6ImVjaG9mdW5jdGlvbmpzIiwibmF0cyI6eyJoYXNoIjoiYWJjMTIzNDVUT0RPbWFrZXRoaXNyZWFsIiwidmV"
    b"yc2lvbiI6Mn19.uWqcanY-xgoV05uLPadReN85yS4s1iIdtCv9wCS0_liWL2hKGMX0EIYL3ZnPMDVc0piv7QLT32"
    b'ap32G95FssCA","environment":"eGt2MUjLlhNNPbEyaaXlgiysXuBCATNiGkS1WDSwO7XOd57kQY0ASEks+D+'
    b'1wMMyda2KF9u/7QEGwH8iW329C9MnbTZUjGiOgbUI4+LmePY=","jsdomain":"","sender_public_key":"XD'
    b'QVNJYXAKD7NQWIIUVL25B34XU6PKNNJ4BQINJSGMN6ZCA5VGFUMHZC","target_node":"NAMFJUY7NPBF6G5J4'
    b'GANK3IIJNIPEHTDOQSNO2FECJMINAO4F3DYBOP5","trigger_subjects":["helloworld"]}'
)
DEPLOY_MINIMAL = (
    b'{"description":"","type":"","location":{"Scheme":"","Opaque":"","User":null,"Host":"","P'
    b'ath":"","RawPath":"","OmitHost":false,"ForceQuery":false,"RawQuery":"","Fragment":"","Ra'
    b'wFragment":""},"essential":false,"workload_jwt":"eyJ0eXAiOiJKV1QiLCJhbGciOiJlZDI1NTE5LW5'
    b"rZXkifQ.eyJqdGkiOiJWSlNSWEZVNTc0UVJDSUlMR0ZQVkpORExIU1dZNE9QTEhIWlE2QUVMUUJLRFBZUkxKTUJB"
    b"IiwiaWF0IjoxNzk1MzYyMjQyLCJpc3MiOiJBQUQ3SlZTUlZXVkJUSUJUNUVHM0JaRVZIQzROVDVaRE5WRU5HWTdM"
    b"TkVBVVZLT1JBWVpYQ0pQSCIsInN1YiI6ImEgYiIsIm5hdHMiOnsiaGFzaCI6IiIsInZlcnNpb24iOjJ9fQ.cFiMM"
    b'RIa0mnKO7PbyI5vyz545RXhgRCpYE6kiI6FDFgkNFIHNlg8-bIoKqP_w1jEjgNk65PAi2A8NErg1KscCQ","envi'
    b'ronment":"eGt2MT+i/GiVPTjrvyhm/tchWgnK7oMlYf1uM+pXsmES3tw3AxeAtdauxDwXwpOq","jsdomain":"'
    b'","sender_public_key":"XDQVNJYXAKD7NQWIIUVL25B34XU6PKNNJ4BQINJSGMN6ZCA5VGFUMHZC","target'
    b'_node":"","trigger_connection":{"nats_url":"","nats_user_jwt":"","nats_user_seed":""},"h'
    b'ost_services":{"nats_url":"u","nats_user_jwt":"j","nats_user_seed":"s"}}'
)
STOP = (
    b'{"workload_id":"cpabc","workload_jwt":"eyJ0eXAiOiJKV1QiLCJhbGciOiJlZDI1NTE5LW5rZXkifQ.ey'
    b"JqdGkiOiJCQ0YzQ09LRlRDS1NDNVg0UllRU1pNU1lORFdKUk9TR1FKSDVJSEhHQUZBUU1GRDQ1WTNBIiwiaWF0Ij"
    b"oxNzk1MzYyMjQyLCJpc3MiOiJBQUQ3SlZTUlZXVkJUSUJUNUVHM0JaRVZIQzROVDVaRE5WRU5HWTdMTkVBVVZLT1"
    b"JBWVpYQ0pQSCIsInN1YiI6ImVjaG9mdW5jdGlvbmpzIiwibmF0cyI6eyJ2ZXJzaW9uIjoyfX0.jHKlN-0QYffeyz"
    b'OSiEaqE4UUtx181tlwfIZu4GSkEfHFyQSDtrAN8nVBWIt3_X6ndbWBlJL8XAFpSopfL7WFAg","target_node":'
    b'"NAMFJUY7NPBF6G5J4GANK3IIJNIPEHTDOQSNO2FECJMINAO4F3DYBOP5"}'
)
FAIL_ENVELOPE = b'{"type":"io.nats.nex.v1.stop_response","data":"","error":"No such workload"}'
DEPLOY_REPLY = (
    b'{"type":"io.nats.nex.v1.run_response","data":{"started":true,"id":"id","issuer":"AAD7JVS'
    b'RVWVBTIBT5EG3BZEVHC4NT5ZDNVENGY7LNEAUVKORAYZXCJPH","name":"n"}}'
)
PING_REPLY = (
    b'{"type":"io.nats.nex.v1.ping_response","data":{"node_id":"NAMFJUY7NPBF6G5J4GANK3IIJNIPEH'
    b'TDOQSNO2FECJMINAO4F3DYBOP5","nexus":"nexus","version":"0.2.7","uptime":"1m5s","target_xk'
    b'ey":"XD7UNKI7WPK4QY5K5EV24DOE77U25KA567QRIY2B2X3AEOANKXJVOSXH","tags":{"nex.os":"linux"}'
    b',"running_machines":0}}'
)
WPING_REPLY = (
    b'{"type":"io.nats.nex.v1.ping_response","data":{"node_id":"NAMFJUY7NPBF6G5J4GANK3IIJNIPEH'
    b'TDOQSNO2FECJMINAO4F3DYBOP5","target_xkey":"","version":"","uptime":"","running_machines"'
    b':[{"id":"i","namespace":"default","name":"n","type":"v8"}]}}'
)
INFO_REPLY = (
    b'{"type":"io.nats.nex.v1.info_response","data":{"version":"0.2.7","uptime":"3s","public_x'
    b'key":"XD7UNKI7WPK4QY5K5EV24DOE77U25KA567QRIY2B2X3AEOANKXJVOSXH","tags":{"nex.cpucount":"'
    b'2"},"memory":{"total":1,"free":2,"available":3},"machines":[{"id":"i","healthy":true,"up'
    b'time":"1s","namespace":"default","workload":{"name":"n","runtime":"0ns","type":"v8","has'
    b'h":"h"}}],"supported_workload_types":["native"]}}'
)
INFO_REPLY_EMPTY = (
    b'{"type":"io.nats.nex.v1.info_response","data":{"version":"","uptime":"","public_xkey":"","machines":[]}}'
)
AUCTION = b'{"arch":"amd64","workload_types":["v8"]}'
LAMEDUCK_REPLY = (
    b'{"type":"io.nats.nex.v1.lameduck_response","data":{"node_id":"NAMFJUY7NPBF6G5J4GANK3IIJN'
    b'IPEHTDOQSNO2FECJMINAO4F3DYBOP5","success":true}}'
)
EMITTED_LOG = b'{"namespace":"n","node_id":"i","workload_id":"w","timestamp":"t","text":"x","level":"INFO","id":"z"}'
HEARTBEAT_EVENT = (
    b'{"data":{"version":"0.2.7","node_id":"NAMFJUY7NPBF6G5J4GANK3IIJNIPEHTDOQSNO2FECJMINAO4F3'
    b'DYBOP5","nexus":"nexus","uptime":"30s","tags":{"a":"b"},"running_machines":0},"dataconte'
    b'nttype":"application/json","id":"11111111-2222-3333-4444-555555555555","source":"NAMFJUY'
    b'7NPBF6G5J4GANK3IIJNIPEHTDOQSNO2FECJMINAO4F3DYBOP5","specversion":"1.0","time":"2024-07-0'
    b'2T16:13:50.123456789Z","type":"heartbeat"}'
)
EXTENDED_EVENT = (
    b'{"data":{"version":"0.2.7","node_id":"NAMFJUY7NPBF6G5J4GANK3IIJNIPEHTDOQSNO2FECJMINAO4F3'
    b'DYBOP5","nexus":"nexus","uptime":"30s","tags":{"a":"b"},"running_machines":0},"dataconte'
    b'nttype":"application/json","id":"11111111-2222-3333-4444-555555555555","namespace":"defa'
    b'ult","source":"NAMFJUY7NPBF6G5J4GANK3IIJNIPEHTDOQSNO2FECJMINAO4F3DYBOP5-cpabc","specvers'
    b'ion":"1.0","time":"2026-11-22T15:44:03.296518485Z","type":"heartbeat"}'
)
LOCATION_WITH_USER = (
    b'{"Scheme":"nats","Opaque":"","User":{},"Host":"BUCKET","Path":"/some/nested/key","RawPat'
    b'h":"","OmitHost":false,"ForceQuery":false,"RawQuery":"x=1","Fragment":"frag","RawFragmen'
    b't":""}'
)
LOCATION_UNDERSCORES = (
    b'{"Scheme":"nats","Opaque":"","User":null,"Host":"My_Bucket","Path":"/key","RawPath":"","'
    b'OmitHost":false,"ForceQuery":false,"RawQuery":"","Fragment":"","RawFragment":""}'
)
LOG_RECORDS = {
    0: b'{"text":"t","level":"INFO","id":"vm"}',
    1: b'{"text":"t","level":"INFO+1","id":"vm"}',
    2: b'{"text":"t","level":"INFO+2","id":"vm"}',
    3: b'{"text":"t","level":"INFO+3","id":"vm"}',
    4: b'{"text":"t","level":"WARN","id":"vm"}',
    5: b'{"text":"t","level":"WARN+1","id":"vm"}',
    6: b'{"text":"t","level":"WARN+2","id":"vm"}',
    -4: b'{"text":"t","level":"DEBUG","id":"vm"}',
    8: b'{"text":"t","level":"ERROR","id":"vm"}',
    9: b'{"text":"t","level":"ERROR+1","id":"vm"}',
}
