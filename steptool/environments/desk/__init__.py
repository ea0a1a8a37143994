"""The embedded world: a service desk with orders, parcels, products, flights, events and tickets."""
