"""The language both planes speak: entities, documents, plugin configurations and the wire. Pure data, no I/O."""
