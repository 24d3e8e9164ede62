import asyncio
import json

from django.db import connection
from django.http import Http404, HttpResponse, JsonResponse, StreamingHttpResponse
from django.template import Context, Engine
from django.views.decorators.http import require_http_methods

from .models import Item


def tables():
    """This shop migrates itself."""
    if Item._meta.db_table not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(Item)


def index(request):
    template = Engine().from_string("<h1>Shop</h1>{% for word in words %}<p>{{ word }}</p>{% endfor %}")
    return HttpResponse(template.render(Context({"words": ["bread & butter"]})))


@require_http_methods(["GET", "POST"])
def items(request):
    tables()
    if request.method == "POST":
        fields = json.loads(request.body)
        made = Item.objects.create(name=fields["name"], price=fields["price"])
        return JsonResponse({"number": made.pk}, status=201)
    return JsonResponse({"items": list(Item.objects.values_list("name", flat=True))})


def item(request, number):
    tables()
    try:
        found = Item.objects.get(pk=number)
    except Item.DoesNotExist:
        raise Http404 from None
    return JsonResponse({"name": found.name, "price": str(found.price)})


def visits(request):
    request.session["visits"] = request.session.get("visits", 0) + 1
    return JsonResponse({"visits": request.session["visits"], "path": request.get_full_path()})


def stream(request):
    return StreamingHttpResponse(f"piece {number}\n" for number in range(10))


async def asynchronous(request):
    await asyncio.sleep(0)
    return JsonResponse({"scheme": request.scheme, "host": request.get_host()})


def crash(request):
    raise RuntimeError("this view always fails")
