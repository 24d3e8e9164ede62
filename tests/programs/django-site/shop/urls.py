from django.urls import path

from . import views

urlpatterns = [
    path("", views.index),
    path("items/", views.items),
    path("items/<int:number>/", views.item),
    path("visits/", views.visits),
    path("stream/", views.stream),
    path("async/", views.asynchronous),
    path("crash/", views.crash),
]
