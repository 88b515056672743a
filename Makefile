.PHONY: up test bench lint types proto migrate

PY := .venv/bin/python
WIRE := gateway_schema/wire

proto: ## make the stubs from proto/
	$(PY) -m grpc_tools.protoc -Iproto --python_out=$(WIRE) --pyi_out=$(WIRE) --grpc_python_out=$(WIRE) proto/config.proto proto/analytics.proto
	sed -i 's/^import \(config\|analytics\)_pb2 as/from gateway_schema.wire import \1_pb2 as/' $(WIRE)/*_pb2_grpc.py
